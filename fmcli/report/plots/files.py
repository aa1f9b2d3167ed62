"""Write figures to files."""

import io
import warnings
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, findfont, fontManager, get_font
from matplotlib.text import Text

from fmcli.choices import FileFormat
from fmcli.errors import UsageError, printable
from fmcli.report.plots.style import TYPEFACE, house_style
from fmcli.storage.atomic import write_atomic

_MAX_SIDE_PIXELS = (1 << 16) - 1  # limit of matplotlib
# Files must not contain a date, so that the same figure always gives the same bytes.
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def check_ending(path: Path) -> str:
    """Return the file format that the ending of a file name selects.

    Raises:
        UsageError: The ending is not .png, .svg or .pdf.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in get_args(FileFormat):
        raise UsageError(f"cannot write a figure to {printable(path)}", hint="end its name in .png, .pdf or .svg")
    return kind


def save_figure(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, SVG or PDF. The same figure always gives the same bytes.

    Args:
        figure: Figure that this package drew.
        path: Output file; its ending selects the format. Missing folders are created.

    Returns:
        The characters that no installed font has, which are drawn as boxes; usually none.

    Raises:
        UsageError: The ending is not supported, or the file cannot be written. An existing file stays intact.
    """
    kind = check_ending(path)
    content = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        missing = _choose_fonts(figure)
        dpi = min(figure.dpi, _MAX_SIDE_PIXELS / max(figure.get_size_inches()))
        figure.savefig(content, format=kind, metadata=_NO_DATE.get(kind), dpi=dpi)
    write_atomic(path, content.getvalue())
    return missing


def _choose_fonts(figure: Figure) -> str:
    """Add installed fonts to a figure's text for characters that `TYPEFACE` does not have.

    Returns:
        The characters that no installed font has. They are drawn as boxes.
    """
    texts = figure.findobj(Text)
    missing = {character for text in texts for character in text.get_text() if character.isprintable()}
    missing -= _characters_of(findfont(TYPEFACE))
    families = [TYPEFACE]
    for name, file in sorted(
        {(font.name, font.fname) for font in fontManager.ttflist if _is_usable(font)} if missing else (),
        key=lambda font: ("sans" not in font[0].lower(), font),
    ):
        if found := missing & _characters_of(file):
            families.append(name)
            missing -= found
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    return "".join(sorted(missing))


def _is_usable(font: FontEntry) -> bool:
    """Return whether a font is upright and not a placeholder font that draws every character as a box."""
    return font.style == "normal" and not font.name.lower().startswith(("last resort", "lastresort"))


def _characters_of(file: str) -> set[str]:
    """Return the characters that a font has; none if the file is damaged or a bitmap font."""
    try:
        return {chr(code) for code in get_font(file).get_charmap()}
    except (OSError, RuntimeError):
        return set()
