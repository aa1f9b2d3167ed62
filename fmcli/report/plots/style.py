"""The style of all figures: colours for colour-blind readers, one typeface, and text that fits its space."""

import logging
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
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


@contextmanager
def house_style() -> Iterator[None]:
    """Use the style of fmcli instead of the user's matplotlibrc, as a context manager or a decorator."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # do not warn that a fallback font has no bold face
    try:
        with matplotlib.style.context(["default", _STYLE]):
            yield
    finally:
        log.setLevel(level)


def new_figure(width: float, height: float, title: str, subject: str, finding: str = "") -> Figure:
    """Return a figure with a title and a subtitle above its axes.

    Args:
        width: Width in inches.
        height: Height below the title in inches.
        title: Name of the figure.
        subject: Name of the member, vote or data shown; shortened if it does not fit.
        finding: Main result in a few words. Default: none.
    """
    figure = _titled_figure(width, height, title, subject, finding)
    edge, total = MARGIN / 2, HEADING_HEIGHT + height  # the layout engine adds the other half of the margin
    figure.set_layout_engine(
        "constrained", rect=(edge / width, edge / total, 1 - MARGIN / width, (height - edge) / total)
    )
    return figure


def new_page(width: float, height: float, title: str, subject: str, finding: str = "") -> tuple[Figure, Any]:
    """Return a figure like `new_figure`, and axes that cover it; their units are inches from the upper left corner."""
    figure = _titled_figure(width, height, title, subject, finding)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(HEADING_HEIGHT + height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _titled_figure(width: float, height: float, title: str, subject: str, finding: str) -> Figure:
    total = HEADING_HEIGHT + height
    figure = Figure(figsize=(width, total))
    finding = f": {finding}" if finding else ""
    available = width - 2 * MARGIN - text_width(finding, SUBTITLE_SIZE)
    subtitle = shorten(subject, available, SUBTITLE_SIZE) + finding
    figure.text(MARGIN / width, 1 - 0.12 / total, title, va="top", fontsize=TITLE_SIZE, fontweight="bold")
    figure.text(MARGIN / width, 1 - 0.35 / total, subtitle, va="top", fontsize=SUBTITLE_SIZE, color=MUTED)
    return figure


def draw_bars(axes: Any, names: Sequence[str], values: Sequence[float], labels: Sequence[str]) -> None:
    """Draw horizontal bars, the first one at the top, with a name on the left and a label at the end of each."""
    rows = range(len(names))
    bars = axes.barh(rows, values, height=0.74, color=BLUE)
    axes.bar_label(bars, labels, padding=3, fontsize=NAME_SIZE)
    axes.set_yticks(rows, names)
    axes.set(xlim=(0, 1.25 * max(values) or 1), ylim=(len(names) - 0.5, -0.5), xticks=())
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)


def visible_points(*coordinates: NDArray[np.float64], steps: int) -> NDArray[np.bool_]:
    """Return a mask of the points of a curve whose coordinates change visibly. Drawing only these keeps files small.

    Args:
        coordinates: Coordinates of the points in [0, 1], each (n_points,).
        steps: Number of different values that can be told apart in the figure.
    """
    rounded = np.round(np.stack(coordinates) * steps)  # (n_coordinates, n_points)
    return np.asarray((np.diff(rounded, prepend=-1) != 0).any(axis=0))


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
    lengths = range(1, len(shown))
    n_kept = bisect_right(
        lengths, max_width, key=lambda length: text_width(_without_middle(shown, length), size, weight=weight)
    )
    return _without_middle(shown, n_kept)


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


def count_ticks(axis: Any, n_ticks: int | Literal["auto"] = "auto") -> None:
    """Label an axis with whole numbers."""
    axis.set_major_locator(MaxNLocator(n_ticks, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
