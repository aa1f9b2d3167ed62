"""Figures of what predictions are worth: confusions, precision against recall, reliability, coverage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fmcli.metrics import (
    classification_report,
)
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.style import (
    ERRORS,
    FAINT,
    HEADING,
    INK,
    MUTED,
    NAMES,
    SMALL,
    fit,
    is_dark,
    percent_ticks,
    set_title,
    styled,
    text_width,
)

_NARROWEST = 5.0  # inches, for the title's sake
_NAME = 1.8  # inches a name may take
_MOST_COUNTS = 60  # classes in a matrix whose cells have room for numbers
_MOST_BEHIND = 12  # classes whose curves still stand behind each other's
_DIAGONAL = "#E3EBF2"


@styled
def confusion_figure(classified: ClassifiedSplit) -> Figure:
    """Return the confusion matrix: counts, and in colour what part of an actual class was taken for another.

    The diagonal has no part in the scale of colours, so that rare mistakes show; each class's recall stands beside
    its row.
    """
    report = classification_report(classified.labels, classified.predicted, class_names=classified.class_names)
    counts, n_classes = report.confusion, len(report.class_names)
    names = [fit(name, _NAME, NAMES) for name in report.class_names]
    cell, size = _cell(counts)
    beside = max(text_width(name, NAMES) for name in names)
    across, down = n_classes * cell + beside + 1.75, n_classes * cell + 0.7 * beside + 0.7
    figure = Figure(figsize=(max(across, _NARROWEST), HEADING + down), layout="constrained")
    accuracy = f"{100 * report.accuracy:.2f} % of {len(classified.labels):,} images right"
    set_title(figure, "Confusion matrix", classified.title, accuracy)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (n_classes, n_classes)
    wrong = np.ma.masked_array(shares, mask=np.eye(n_classes, dtype=bool))
    scale = Normalize(0, float(np.ma.filled(wrong, 0).max()) or 1.0)
    heat = axes.imshow(wrong, cmap=ERRORS.with_extremes(bad=_DIAGONAL), norm=scale, interpolation="nearest")
    if n_classes <= _MOST_COUNTS:
        _write_counts(axes, counts, ERRORS(scale(shares)), size)
    _name_cells(axes, names, [scores.recall for scores in report.classes])
    bar = figure.colorbar(heat, ax=axes, shrink=min(0.9, 4 / (n_classes * cell)), aspect=24, pad=0.1 / across)
    bar.set_label("share of the actual class")
    percent_ticks(bar.ax.yaxis)
    bar.outline.set_visible(False)
    return figure


def _cell(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return how large a cell is in inches, and its number in points."""
    n_classes = len(counts)
    if n_classes > _MOST_COUNTS:
        return 0.2, SMALL
    size, least = (NAMES, max(0.38, 2.4 / n_classes)) if n_classes <= 15 else (6.5, 0.28)
    return max(least, text_width(f"{counts.max():,}", size, weight="bold") + 0.1), size


def _write_counts(axes: Any, counts: NDArray[np.int64], colours: NDArray[np.floating[Any]], size: float) -> None:
    """Write each count into its cell, light on dark and dark on light; a dot stands for none."""
    rows, columns = np.nonzero(counts == 0)
    axes.plot(columns, rows, linestyle="", marker=".", markersize=1.5, color=MUTED)
    for row, column in np.argwhere(counts):
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}",
            ha="center",
            va="center_baseline",
            fontsize=size,
            fontweight="bold" if row == column else "normal",
            color="white" if row != column and is_dark(colours[row, column]) else INK,
        )


def _name_cells(axes: Any, names: Sequence[str], recalls: Sequence[float]) -> None:
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted class", ylabel="actual class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.add_patch(Rectangle((-0.5, -0.5), len(names), len(names), fill=False, edgecolor=MUTED, linewidth=0.8))
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, [f"{100 * recall:.1f} %" for recall in recalls])
    beside.tick_params(length=0)
    beside.spines[:].set_visible(False)
    axes.annotate("recall", (1, 1), xytext=(3.5, 3.5), xycoords="axes fraction", textcoords="offset points")
