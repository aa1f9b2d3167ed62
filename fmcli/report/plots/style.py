"""The style of all figures: colours for colour-blind readers, one typeface, and text that fits its space."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fmcli.errors import printable

INK, MUTED, FAINT = "#222222", "#6B6B6B", "#D9D9D9"
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
# Okabe and Ito, "Color Universal Design", 2008, without yellow, which is invisible on white.
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "#000000")
MARKERS = "osD^vP*X"  # 8 markers and 7 colours have no common divisor, so 56 members get different pairs
ERRORS = LinearSegmentedColormap.from_list("errors", ["#FFFFFF", "#FFD9A0", ORANGE, VERMILLION, "#7A2E00"])

TYPEFACE = "DejaVu Sans"  # part of matplotlib
TITLE_SIZE, SUBTITLE_SIZE, BODY_SIZE, NAME_SIZE, SMALL_SIZE = 11, 8.5, 9, 8, 7.5  # font sizes in points
HEADING_HEIGHT = 0.6  # inches for title and subtitle
MARGIN = 0.12  # inches at the edges of a figure
MIN_TITLE_WIDTH = 5.0  # inches, the minimum width of a figure with a long title
MAX_NAME_WIDTH = 1.8  # inches for the name of a class or member

_STYLE = {
    "font.family": TYPEFACE,
    "font.size": BODY_SIZE,
    "text.color": INK,
    "text.parse_math": False,  # a class name may contain "$"
    "axes.titlesize": BODY_SIZE,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": NAME_SIZE,
    "ytick.labelsize": NAME_SIZE,
    "legend.frameon": False,
    "legend.fontsize": NAME_SIZE,
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.constrained_layout.h_pad": MARGIN / 2,
    "figure.constrained_layout.w_pad": MARGIN / 2,
    "pdf.fonttype": 42,  # embed TrueType fonts, which publishers require
    "svg.hashsalt": "fmcli",  # makes files of the same figure identical
}

P = ParamSpec("P")


@contextmanager
def house_style() -> Iterator[None]:
    """Use the style of fmcli and ignore the user's matplotlibrc."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # do not warn that a fallback font has no bold face
    try:
        with matplotlib.style.context(["default", _STYLE]):
            yield
    finally:
        log.setLevel(level)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure, so that it uses the style of fmcli."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with house_style():
            return draw(*args, **kwargs)

    return drawn


def set_title(figure: Figure, title: str, subject: str, finding: str = "") -> None:
    """Write a title and a subtitle at the top of a figure.

    Args:
        figure: Figure with `HEADING_HEIGHT` inches of free space at the top.
        title: Name of the figure.
        subject: Name of the member, vote or data shown; shortened if it does not fit.
        finding: Main result in a few words. Default: none.
    """
    width, height = figure.get_size_inches()
    finding = f": {finding}" if finding else ""
    available = width - 2 * MARGIN - text_width(finding, SUBTITLE_SIZE)
    subtitle = shorten(subject, available, SUBTITLE_SIZE) + finding
    figure.text(MARGIN / width, 1 - 0.12 / height, title, va="top", fontsize=TITLE_SIZE, fontweight="bold")
    figure.text(MARGIN / width, 1 - 0.35 / height, subtitle, va="top", fontsize=SUBTITLE_SIZE, color=MUTED)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        edge = MARGIN / 2  # the layout engine adds the other half
        layout.set(rect=(edge / width, edge / height, 1 - 2 * edge / width, 1 - (HEADING_HEIGHT + edge) / height))


def blank_page(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure and axes that cover it; their units are inches from the upper left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def is_dark(colour: NDArray[np.floating[Any]]) -> bool:
    """Return whether white text has more contrast on a colour than dark text.

    Args:
        colour: Red, green and blue in [0, 1], optionally followed by opacity.

    References:
        W3C, "Web Content Accessibility Guidelines 2.1", 2018: relative luminance and contrast.
    """
    channels = np.where(colour[:3] <= 0.03928, colour[:3] / 12.92, ((colour[:3] + 0.055) / 1.055) ** 2.4)
    return float(channels @ (0.2126, 0.7152, 0.0722)) < 0.213


# --- text -------------------------------------------------------------------------------------------------


def text_width(text: str, size: float, *, weight: str = "normal") -> float:
    """Return the width of text in inches.

    Args:
        text: One line of text.
        size: Font size in points.
        weight: Font weight in matplotlib's terms.
    """
    font = FontProperties(family=TYPEFACE, size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a missing character is measured as a box
        points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return 1.03 * float(points) / 72  # screens render text slightly wider


def shorten(text: str, max_width: float, size: float, *, weight: str = "normal") -> str:
    """Escape control characters in text and replace its middle by an ellipsis if it is too wide.

    The end is kept, because long names often differ only there.

    Args:
        text: A name in any script.
        max_width: Available width in inches.
        size: Font size in points.
        weight: Font weight in matplotlib's terms.
    """
    shown = printable(text)
    if text_width(shown, size, weight=weight) <= max_width:
        return shown
    fits, too_long = 0, len(shown)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(_without_middle(shown, middle), size, weight=weight) <= max_width:
            fits = middle
        else:
            too_long = middle
    return _without_middle(shown, fits)


def _without_middle(text: str, n_kept: int) -> str:
    """Return the given number of characters of a text, two thirds of them from its start.

    Example:
        >>> _without_middle("a rather long name, 12", 9)
        'a rath… 12'
    """
    end = n_kept // 3
    return text[: n_kept - end] + "…" + text[len(text) - end :]


def percent_ticks(axis: Any) -> None:
    """Label an axis of fractions with percentages."""
    axis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:.10g} %"))


def count_ticks(axis: Any) -> None:
    """Label an axis with a few whole numbers."""
    axis.set_major_locator(MaxNLocator(3, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))


def choose_fonts(figure: Figure) -> str:
    """Add installed fonts to a figure's text for characters that `TYPEFACE` lacks.

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
