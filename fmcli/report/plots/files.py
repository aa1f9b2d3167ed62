"""Write figures to files."""

import io
import warnings
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure

from fmcli.choices import FileFormat
from fmcli.errors import FmcliError, printable
from fmcli.report.plots.style import choose_fonts, house_style
from fmcli.storage.atomic import write_atomic

_MAX_SIDE_PIXELS = (1 << 16) - 1  # limit of matplotlib
# Files must not contain a date, so that the same figure always gives the same bytes.
_NO_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def check_ending(path: Path) -> str:
    """Return the file format that the ending of a file name selects.

    Raises:
        FmcliError: The ending is not .png, .svg or .pdf.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in get_args(FileFormat):
        raise FmcliError(f"cannot write a figure to {printable(path)}", hint="end its name in .png, .pdf or .svg")
    return kind


def save_figure(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, SVG or PDF. The same figure always gives the same bytes.

    Args:
        figure: Figure that this package drew.
        path: Output file; its ending selects the format. Missing folders are created.

    Returns:
        The characters that no installed font has, which are drawn as boxes; usually none.

    Raises:
        FmcliError: The ending is not supported, or the file cannot be written. An existing file stays intact.
    """
    kind = check_ending(path)
    content = io.BytesIO()
    with house_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        missing = choose_fonts(figure)
        dpi = min(figure.dpi, _MAX_SIDE_PIXELS / max(figure.get_size_inches()))
        figure.savefig(content, format=kind, metadata=_NO_DATE.get(kind), dpi=dpi)
    write_atomic(path, content.getvalue())
    return missing
