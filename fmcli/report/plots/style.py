"""How every figure looks: colours that colour-blind readers tell apart, one typeface, and names that fit."""

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
# Okabe and Ito, "Color Universal Design", 2008; without their yellow, which is lost on white.
PALETTE = (BLUE, VERMILLION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "#000000")
MARKERS = "osD^vP*X"  # as many as have no common divisor with the colours: 56 pairs before one comes again
ERRORS = LinearSegmentedColormap.from_list("errors", ["#FFFFFF", "#FFD9A0", ORANGE, VERMILLION, "#7A2E00"])

TYPEFACE = "DejaVu Sans"  # comes with matplotlib
TITLE, SUBTITLE, BODY, NAMES, SMALL = 11, 8.5, 9, 8, 7.5  # points
HEADING = 0.6  # inches for title and subtitle
MARGIN = 0.12  # inches around everything

_STYLE = {
    "font.family": TYPEFACE,
    "font.size": BODY,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5 to $10"
    "axes.titlesize": BODY,
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
    "xtick.labelsize": NAMES,
    "ytick.labelsize": NAMES,
    "legend.frameon": False,
    "legend.fontsize": NAMES,
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "figure.constrained_layout.h_pad": MARGIN / 2,
    "figure.constrained_layout.w_pad": MARGIN / 2,
    "pdf.fonttype": 42,  # whole letters, which publishers ask for
    "svg.hashsalt": "fmcli",  # the same figure gives the same file
}

P = ParamSpec("P")


@contextmanager
def house_style() -> Iterator[None]:
    """Draw as fmcli does, whatever the user's matplotlibrc says."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)  # that a font for foreign letters has no bold is nothing to tell a user
    try:
        with matplotlib.style.context(["default", _STYLE]):
            yield
    finally:
        log.setLevel(level)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function that draws a figure do so in the house style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with house_style():
            return draw(*args, **kwargs)

    return drawn


def set_title(figure: Figure, title: str, whose: str, finding: str = "") -> None:
    """Write two lines above everything else.

    Args:
        figure: `HEADING` inches higher than what it shows needs.
        title: What is shown.
        whose: Of what or whom; cut where there is too little room.
        finding: What comes out, if a few words can say it.
    """
    width, height = figure.get_size_inches()
    finding = f": {finding}" if finding else ""
    room = width - 2 * MARGIN - text_width(finding, SUBTITLE)
    subtitle = fit(whose, room, SUBTITLE) + finding
    figure.text(MARGIN / width, 1 - 0.12 / height, title, va="top", fontsize=TITLE, fontweight="bold")
    figure.text(MARGIN / width, 1 - 0.35 / height, subtitle, va="top", fontsize=SUBTITLE, color=MUTED)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        edge = MARGIN / 2  # the layout pads by as much itself
        layout.set(rect=(edge / width, edge / height, 1 - 2 * edge / width, 1 - (HEADING + edge) / height))


def blank_page(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure and axes over all of it, whose units are inches from the upper left corner."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def is_dark(colour: NDArray[np.floating[Any]]) -> bool:
    """Tell whether white stands out on a colour more than ink does.

    Args:
        colour: Red, green, blue, and perhaps opacity, in [0, 1].

    References:
        Relative luminance and contrast are those of the W3C's "Web Content Accessibility Guidelines 2.1", 2018.
    """
    channels = np.where(colour[:3] <= 0.03928, colour[:3] / 12.92, ((colour[:3] + 0.055) / 1.055) ** 2.4)
    return float(channels @ (0.2126, 0.7152, 0.0722)) < 0.213


# --- text -------------------------------------------------------------------------------------------------


def text_width(text: str, size: float, *, weight: str = "normal") -> float:
    """Return how wide text is, in inches.

    Args:
        text: One line.
        size: In points.
        weight: As matplotlib calls it.
    """
    font = FontProperties(family=TYPEFACE, size=size, weight=weight)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # such a letter is measured as the box it may become
        points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return 1.03 * float(points) / 72  # on a screen, letters are set a little wider than they are


def fit(text: str, room: float, size: float, *, weight: str = "normal") -> str:
    """Return text that is safe to draw, without its middle where it would be wider than the room.

    The end stays: long names often differ there alone.

    Args:
        text: A name, in any script.
        room: In inches.
        size: In points.
        weight: As matplotlib calls it.
    """
    shown = printable(text)
    if text_width(shown, size, weight=weight) <= room:
        return shown
    fits, too_long = 0, len(shown)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(_without_middle(shown, middle), size, weight=weight) <= room:
            fits = middle
        else:
            too_long = middle
    return _without_middle(shown, fits)


def _without_middle(text: str, kept: int) -> str:
    """Return so many characters of a text, two thirds of them from its beginning.

    Example:
        >>> _without_middle("a rather long name, 12", 9)
        'a rath… 12'
    """
    end = kept // 3
    return text[: kept - end] + "…" + text[len(text) - end :]


def percent_ticks(axis: Any) -> None:
    """Let an axis of parts of 1 show percentages."""
    axis.set_major_formatter(FuncFormatter(lambda part, _: f"{100 * part:.10g} %"))


def count_ticks(axis: Any) -> None:
    """Let an axis show a few whole numbers."""
    axis.set_major_locator(MaxNLocator(3, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))


def choose_fonts(figure: Figure) -> str:
    """Give a figure's text, besides the house's typeface, installed ones that have the letters it lacks.

    Returns:
        The characters that none has; they are drawn as boxes.
    """
    texts = figure.findobj(Text)
    lacking = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    lacking -= _letters_of(findfont(TYPEFACE))
    families = [TYPEFACE]
    for name, file in sorted(
        {(font.name, font.fname) for font in fontManager.ttflist if _is_fit(font)} if lacking else (),
        key=lambda font: ("sans" not in font[0].lower(), font),
    ):
        if found := lacking & _letters_of(file):
            families.append(name)
            lacking -= found
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    return "".join(sorted(lacking))


def _is_fit(font: FontEntry) -> bool:
    """Tell whether a font is upright, and not one of boxes in place of every letter there is."""
    return font.style == "normal" and not font.name.lower().startswith(("last resort", "lastresort"))


def _letters_of(file: str) -> set[str]:
    """Return the characters that a font has; none where it is broken, or made of bitmaps."""
    try:
        return {chr(code) for code in get_font(file).get_charmap()}
    except (OSError, RuntimeError):
        return set()
