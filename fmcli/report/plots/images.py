"""Figures of images: samples of each class, predictions, and mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fmcli.errors import DataError
from fmcli.report.plots import style
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.thumbnails import choose_samples, to_rgb

SAMPLES_PER_CLASS = 12
"""Maximum number of images of each class."""
_SAMPLE_SIDE, _PREDICTION_SIDE = 0.55, 1.25  # inches, the longer side of an image
_SAMPLE_GAP = 0.04  # inches between samples
_N_COLUMNS = 6
_COLUMN_WIDTH = 1.4  # inches
_CAPTION_WIDTH = 1.3  # inches
_LINE_HEIGHT = 0.145  # inches
_CORRECT_FRAME: dict[str, Any] = {"edgecolor": style.BLUE, "linewidth": 0.8}
_WRONG_FRAME: dict[str, Any] = {"edgecolor": style.VERMILLION, "linewidth": 2.2, "linestyle": "--"}


# --- samples ----------------------------------------------------------------------------------------------


@style.house_style()
def sample_figure(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    source: str,
    each: int = SAMPLES_PER_CLASS,
) -> Figure:
    """Draw a grid of sample images, one row per class.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        class_names: Class names in label order.
        source: Name of the images for the title.
        each: Maximum number of images of each class.
    """
    width, height = _size(images, _SAMPLE_SIDE)
    names = [style.shorten(name, 2.4, style.BODY_SIZE) for name in class_names]
    left = style.MARGIN + max(style.text_width(name, style.BODY_SIZE) for name in names) + 0.15
    page_width = left + each * (width + _SAMPLE_GAP) + style.MARGIN
    page_height = len(names) * (height + _SAMPLE_GAP) + style.MARGIN
    figure, axes = style.new_page(page_width, page_height, "Samples of each class", source)
    for row, (name, chosen) in enumerate(zip(names, choose_samples(labels, len(names), each), strict=True)):
        top = style.HEADING_HEIGHT + row * (height + _SAMPLE_GAP)
        axes.text(left - 0.15, top + height / 2, name, ha="right", va="center_baseline", fontsize=style.BODY_SIZE)
        for column, index in enumerate(chosen):
            _show(axes, images[index], left + column * (width + _SAMPLE_GAP), top, (width, height))
        if not len(chosen):
            axes.text(left, top + height / 2, "no images", va="center_baseline", color=style.MUTED, fontstyle="italic")
    return figure


# --- predictions, mistakes --------------------------------------------------------------------------------


@style.house_style()
def prediction_figure(images: NDArray[np.uint8], classified: ClassifiedSplit, *, max_images: int = 30) -> Figure:
    """Draw images with their predicted class, its probability, and the actual class.

    Args:
        images: uint8 (N, C, H, W).
        classified: Predictions for these images.
        max_images: Maximum number of images. They are evenly spaced, because many data sets are sorted by class.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(max_images, len(images))).round().astype(int))
    n_correct = int(classified.correct[chosen].sum())
    finding = f"{n_correct} correct ✓, {len(chosen) - n_correct} wrong ✗"
    return _draw_page(images, classified, chosen, "Predictions", finding, framed=True)


@style.house_style()
def mistake_figure(images: NDArray[np.uint8], classified: ClassifiedSplit, *, max_images: int = 30) -> Figure:
    """Draw the misclassified images with the highest confidence, the highest first.

    Args:
        images: uint8 (N, C, H, W).
        classified: Predictions for these images.
        max_images: Maximum number of images.

    Raises:
        DataError: All images are classified correctly.
    """
    wrong = np.flatnonzero(~classified.correct)
    if not len(wrong):
        raise DataError(
            f"there are no mistakes to show: {classified.name} classifies all {len(images):,} {classified.split} "
            "images correctly",
            hint="choose another split",
        )
    chosen = wrong[np.argsort(-classified.confidence[wrong], kind="stable")][:max_images]
    finding = f"{len(chosen)} of {len(wrong):,} shown"
    return _draw_page(images, classified, chosen, "Mistakes with the highest confidence", finding)


def _draw_page(
    images: NDArray[np.uint8],
    classified: ClassifiedSplit,
    chosen: NDArray[np.int64],
    title: str,
    finding: str,
    *,
    framed: bool = False,
) -> Figure:
    """Draw images with captions. Thin frames mark correct predictions, thick dashed frames wrong ones."""
    width, height = _size(images, _PREDICTION_SIDE)
    row_height = height + 3 * _LINE_HEIGHT + 0.22
    page_width = 2 * style.MARGIN + _N_COLUMNS * _COLUMN_WIDTH
    page_height = -(-len(chosen) // _N_COLUMNS) * row_height
    figure, axes = style.new_page(page_width, page_height, title, classified.title, finding)
    for position, index in enumerate(chosen):
        row, column = divmod(position, _N_COLUMNS)
        left, top = style.MARGIN + column * _COLUMN_WIDTH, style.HEADING_HEIGHT + row * row_height
        _show(axes, images[index], left, top, (width, height))
        _write_caption(axes, classified, int(index), left, top + height + 0.06)
        if framed:
            frame = _CORRECT_FRAME if classified.correct[index] else _WRONG_FRAME
            axes.add_patch(Rectangle((left, top), width, height, fill=False, **frame))
    return figure


def _write_caption(axes: Any, classified: ClassifiedSplit, index: int, left: float, top: float) -> None:
    names, correct = classified.class_names, bool(classified.correct[index])
    mark, mark_colour = ("✓", style.BLUE) if correct else ("✗", style.VERMILLION)
    confidence = _format_confidence(float(classified.confidence[index]))
    lines = [
        (f"{mark} {names[classified.predicted[index]]}", mark_colour, "bold"),
        (f"{confidence} sure · #{index}", style.MUTED, "normal"),
        (f"actual: {names[classified.labels[index]]}", style.INK, "normal"),
    ]
    for row, (text, colour, weight) in enumerate(lines):
        shown = style.shorten(text, _CAPTION_WIDTH, style.SMALL_SIZE, weight=weight)
        font = {"fontsize": style.SMALL_SIZE, "fontweight": weight}
        axes.text(left, top + row * _LINE_HEIGHT, shown, va="top", color=colour, **font)


def _format_confidence(probability: float) -> str:
    """Return a probability as a percentage. Only a probability of 1 is shown as 100 %.

    Example:
        >>> _format_confidence(0.9731), _format_confidence(0.99996), _format_confidence(1.0)
        ('97.3 %', '>99.9 %', '100 %')
    """
    if probability >= 0.9995:
        return "100 %" if probability >= 1.0 else ">99.9 %"
    return f"{100 * probability:.1f} %"


# --- images -----------------------------------------------------------------------------------------------


def _size(images: NDArray[np.uint8], longer_side: float) -> tuple[float, float]:
    """Return the width and height of a drawn image in inches."""
    height, width = images.shape[2:]
    return longer_side * width / max(height, width), longer_side * height / max(height, width)


def _show(axes: Any, image: NDArray[np.uint8], left: float, top: float, size: tuple[float, float]) -> None:
    width, height = size
    axes.imshow(to_rgb(image), extent=(left, left + width, top + height, top), aspect="auto")
