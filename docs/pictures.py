"""Draw the pictures of README.md from a trained run of the recipe quick.

    python docs/pictures.py checkpoints/quick

`docs/images/terminal.svg` shows the first table of `fmcli ensemble evaluate`, `docs/images/mistakes.png` the figure of
`fmcli plot mistakes`.
"""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path
from unittest import mock

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from fmcli.choices import Format
from fmcli.cli import run
from fmcli.report.console import BestEffortStream, Terminal, make_console
from fmcli.report.document import Document, emit

IMAGES = Path(__file__).parent / "images"
RUN = "checkpoints/quick"  # the name that the picture shows
COLUMNS = 92
# Rich's own SVG loads its font from the internet.
SVG_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S).replace(
    "font-family: Fira Code, monospace", "font-family: Fira Code, Menlo, Consolas, DejaVu Sans Mono, monospace"
)


def draw_terminal(target: Path) -> None:
    """Write the command and its first table, as a terminal shows them, to an SVG file."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        highlight=False, emoji=False, markup=False,
    )  # fmt: skip

    def record_output(file: io.TextIOBase | BestEffortStream) -> Console:
        return make_console(file) if isinstance(file, BestEffortStream) else console

    def emit_first(document: Document, format_: Format, terminal: Terminal) -> None:
        emit(Document(document.sheets[:1], {}, []), format_, terminal)

    words = ["ensemble", "evaluate", RUN]
    console.print(Text.assemble(("$ ", "bold green"), ("fmcli ", "bold"), " ".join(words)))
    with (
        mock.patch("fmcli.report.console.make_console", record_output),
        mock.patch("fmcli.report.document.emit", emit_first),
    ):
        _check(run(words))
    svg = console.export_svg(title="fmcli", code_format=SVG_FORMAT, unique_id="terminal")
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", "utf-8")


def draw_mistakes(target: Path) -> None:
    """Write the figure of mistakes as a PNG file with a palette, which halves its size."""
    _check(run(["plot", "mistakes", RUN, "--output", str(target)]))
    with Image.open(target) as figure:
        small = figure.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def _check(status: int) -> None:
    if status:
        sys.exit(int(status))


def main() -> None:
    """Draw both pictures of the run whose path is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained run in a folder checkpoints/quick")
    folder = parser.parse_args().run.resolve()
    if folder.parts[-2:] != tuple(RUN.split("/")):
        parser.error(f"the run must be in a folder {RUN}, because the picture shows this name; got {folder}")
    IMAGES.mkdir(exist_ok=True)
    with contextlib.chdir(folder.parents[1]):
        draw_terminal(IMAGES / "terminal.svg")
        draw_mistakes(IMAGES / "mistakes.png")


if __name__ == "__main__":
    main()
