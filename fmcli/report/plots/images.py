"""Figures made of images: samples of each class, predictions, and the worst mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fmcli.errors import DataError
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.style import (
    BLUE,
    BODY,
    HEADING,
    INK,
    MARGIN,
    MUTED,
    SMALL,
    VERMILLION,
    blank_page,
    fit,
    set_title,
    styled,
    text_width,
)
from fmcli.report.thumbnails import choose_samples, to_rgb

SAMPLES_OF_EACH = 12
"""How many images of each class are shown, at most."""
_SAMPLE, _LARGE = 0.55, 1.25  # inches, the longer side of an image
_GAP = 0.04  # inches between samples
_COLUMNS = 6
_CELL = 1.4  # inches from one predicted image to the next
_ROOM = 1.3  # inches that a caption may take
_LINE = 0.145  # inches from a line of a caption to the next


# --- samples ----------------------------------------------------------------------------------------------


@styled
def sample_figure(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    source: str,
    each: int = SAMPLES_OF_EACH,
) -> Figure:
    """Return a grid of samples, a row a class.

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,).
        class_names: In label order.
        source: What the images are called.
        each: How many of each class, at most; a class without images has an empty row.
    """
    width, height = _size(images, _SAMPLE)
    names = [fit(name, 2.4, BODY) for name in class_names]
    left = MARGIN + max(text_width(name, BODY) for name in names) + 0.15
    page = (left + each * (width + _GAP) + MARGIN, HEADING + len(names) * (height + _GAP) + MARGIN)
    figure, axes = blank_page(*page)
    set_title(figure, "Samples of each class", source)
    for row, (name, chosen) in enumerate(zip(names, choose_samples(labels, len(names), each), strict=True)):
        top = HEADING + row * (height + _GAP)
        axes.text(left - 0.15, top + height / 2, name, ha="right", va="center_baseline", fontsize=BODY)
        for place, index in enumerate(chosen):
            _show(axes, images[index], left + place * (width + _GAP), top, (width, height))
        if not len(chosen):
            axes.text(left, top + height / 2, "no images", va="center_baseline", color=MUTED, fontstyle="italic")
    return figure


# --- predictions, mistakes --------------------------------------------------------------------------------


@styled
def prediction_figure(images: NDArray[np.uint8], classified: ClassifiedSplit, *, most: int = 30) -> Figure:
    """Return images with their predicted and actual class and the predicted one's probability.

    Args:
        images: uint8 (N, C, H, W).
        classified: Of these images.
        most: How many to show, at most; taken at even distances, as many data sets are sorted by class.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    figure, axes = _draw_page(images, classified, chosen)
    n_right = int(classified.correct[chosen].sum())
    set_title(figure, "Predictions", classified.title, f"{n_right} right ✓, {len(chosen) - n_right} wrong ✗")
    size = _size(images, _LARGE)
    for place, index in enumerate(chosen):
        _frame(axes, _corner(place, size[1]), size, right=bool(classified.correct[index]))
    return figure


@styled
def mistake_figure(images: NDArray[np.uint8], classified: ClassifiedSplit, *, most: int = 30) -> Figure:
    """Return the images whose wrong class was found likeliest, the surest mistake first.

    Args:
        images: uint8 (N, C, H, W).
        classified: Of these images.
        most: How many to show, at most.

    Raises:
        DataError: There are no mistakes.
    """
    wrong = np.flatnonzero(~classified.correct)
    if not len(wrong):
        raise DataError(
            f"{classified.title} is right on all {len(images):,} images, so there is no mistake to show",
            hint="choose other images with --split",
        )
    chosen = wrong[np.argsort(-classified.confidence[wrong], kind="stable")][:most]
    which = f"{len(chosen)} of {len(wrong):,}" if len(chosen) < len(wrong) else f"all {len(wrong)} there are"
    figure, _ = _draw_page(images, classified, chosen)
    set_title(figure, "The surest mistakes", classified.title, which)
    return figure


def _draw_page(images: NDArray[np.uint8], classified: ClassifiedSplit, chosen: NDArray[np.int64]) -> tuple[Figure, Any]:
    """Return a page of images with captions, and its axes."""
    width, height = _size(images, _LARGE)
    rows = -(-len(chosen) // _COLUMNS)
    figure, axes = blank_page(2 * MARGIN + _COLUMNS * _CELL, HEADING + rows * _pitch(height))
    for place, index in enumerate(chosen):
        left, top = _corner(place, height)
        _show(axes, images[index], left, top, (width, height))
        _caption(axes, classified, int(index), left, top + height + 0.06)
    return figure, axes


def _pitch(height: float) -> float:
    return height + 3 * _LINE + 0.22


def _corner(place: int, height: float) -> tuple[float, float]:
    """Return where the image at a place of the page begins, in inches from the left and from the top."""
    row, column = divmod(place, _COLUMNS)
    return MARGIN + column * _CELL, HEADING + row * _pitch(height)


def _frame(axes: Any, corner: tuple[float, float], size: tuple[float, float], *, right: bool) -> None:
    """Frame an image: a thin line where the answer is right, thick dashes where it is wrong."""
    thin: dict[str, Any] = {"edgecolor": BLUE, "linewidth": 0.8}
    thick: dict[str, Any] = {"edgecolor": VERMILLION, "linewidth": 2.2, "linestyle": "--"}
    axes.add_patch(Rectangle(corner, *size, fill=False, **(thin if right else thick)))


def _caption(axes: Any, classified: ClassifiedSplit, index: int, left: float, top: float) -> None:
    names, right = classified.class_names, bool(classified.correct[index])
    sure = _percent(float(classified.confidence[index]))
    lines: list[tuple[str, dict[str, Any]]] = [
        (
            f"{'✓' if right else '✗'} {names[classified.predicted[index]]}",
            {"color": BLUE if right else VERMILLION, "fontweight": "bold"},
        ),
        (f"{sure} sure · #{index}", {"color": MUTED}),
        (f"actual: {names[classified.labels[index]]}", {"color": INK}),
    ]
    for row, (text, look) in enumerate(lines):
        shown = fit(text, _ROOM, SMALL, weight=look.get("fontweight", "normal"))
        axes.text(left, top + row * _LINE, shown, va="top", fontsize=SMALL, **look)


def _percent(probability: float) -> str:
    """Return a probability that says 100 % of nothing less.

    Example:
        >>> _percent(0.9731), _percent(0.99996), _percent(1.0)
        ('97.3 %', '>99.9 %', '100 %')
    """
    if probability >= 0.9995:
        return "100 %" if probability >= 1.0 else ">99.9 %"
    return f"{100 * probability:.1f} %"


# --- images -----------------------------------------------------------------------------------------------


def _size(images: NDArray[np.uint8], longest: float) -> tuple[float, float]:
    """Return the width and height of an image on paper, in inches."""
    height, width = images.shape[2:]
    return longest * width / max(height, width), longest * height / max(height, width)


def _show(axes: Any, image: NDArray[np.uint8], left: float, top: float, size: tuple[float, float]) -> None:
    width, height = size
    axes.imshow(to_rgb(image), extent=(left, left + width, top + height, top), aspect="auto")
