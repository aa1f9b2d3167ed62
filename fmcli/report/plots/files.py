"""Figures as files."""

import io
import warnings
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure

from fmcli.choices import FileFormat
from fmcli.errors import FmcliError, printable
from fmcli.report.plots.style import choose_fonts, house_style
from fmcli.storage.atomic import write_atomic

_LONGEST_SIDE = (1 << 16) - 1  # pixels that matplotlib draws, if no more
# A date would make the same figure another file each time.
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def check_ending(path: Path) -> str:
    """Return the kind of file that a name asks for.

    Raises:
        FmcliError: It is none that figures can be written as.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in get_args(FileFormat):
        raise FmcliError(f"cannot write a picture to {printable(path)}", hint="end its name in .png, .pdf or .svg")
    return kind


def save_figure(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, SVG or PDF by its file's ending; the same figure always gives the same bytes.

    Args:
        figure: As drawn by this package.
        path: Where to. Its folder is made if missing.

    Returns:
        The characters that no font here has, which stand as boxes; mostly none.

    Raises:
        FmcliError: The ending is another, or the file cannot be written; one that stood there before is intact.
    """
    kind = check_ending(path)
    content = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        lacking = choose_fonts(figure)
        dpi = min(figure.dpi, _LONGEST_SIDE / max(figure.get_size_inches()))
        figure.savefig(content, format=kind, metadata=_NO_DATE.get(kind), dpi=dpi)
    write_atomic(path, content.getvalue())
    return lacking
