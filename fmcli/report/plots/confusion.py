"""The figure of a confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fmcli.metrics.classification import classification_report
from fmcli.report.plots import style
from fmcli.report.plots.classified import ClassifiedSplit

_MAX_CLASSES_WITH_COUNTS = 60  # the cells of larger matrices have no numbers
_DIAGONAL = "#E3EBF2"


@style.house_style()
def confusion_figure(classified: ClassifiedSplit) -> Figure:
    """Draw the confusion matrix with counts and the recall of each class.

    Colours show the share of the actual class. The diagonal is not part of the colour scale, so that rare mistakes are
    visible.
    """
    report = classification_report(classified.labels, classified.predicted, class_names=classified.class_names)
    counts, n_classes = report.confusion, len(report.class_names)
    names = [style.shorten(name, style.MAX_NAME_WIDTH, style.NAME_SIZE) for name in report.class_names]
    cell, size = _cell_size(counts)
    name_width = max(style.text_width(name, style.NAME_SIZE) for name in names)
    width, height = n_classes * cell + name_width + 1.75, n_classes * cell + 0.7 * name_width + 0.7
    finding = f"{100 * report.accuracy:.2f} % of {len(classified.labels):,} images correct"
    figure = style.new_figure(max(width, style.MIN_TITLE_WIDTH), height, "Confusion matrix", classified.title, finding)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # (n_classes, n_classes)
    wrong = np.ma.masked_array(shares, mask=np.eye(n_classes, dtype=bool))
    scale = Normalize(0, float(np.ma.filled(wrong, 0).max()) or 1.0)
    heat = axes.imshow(wrong, cmap=style.ERRORS.with_extremes(bad=_DIAGONAL), norm=scale, interpolation="nearest")
    if n_classes <= _MAX_CLASSES_WITH_COUNTS:
        _write_counts(axes, counts, style.ERRORS(scale(shares)), size)
    _name_cells(axes, names, [scores.recall for scores in report.classes])
    bar = figure.colorbar(heat, ax=axes, shrink=min(0.9, 4 / (n_classes * cell)), aspect=24, pad=0.1 / width)
    bar.set_label("share of the actual class")
    style.percent_ticks(bar.ax.yaxis)
    bar.outline.set_visible(False)
    return figure


def _cell_size(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the size of a cell in inches and the font size of its count in points."""
    n_classes = len(counts)
    if n_classes > _MAX_CLASSES_WITH_COUNTS:
        return 0.2, style.SMALL_SIZE
    size, min_width = (style.NAME_SIZE, max(0.38, 2.4 / n_classes)) if n_classes <= 15 else (6.5, 0.28)
    return max(min_width, style.text_width(f"{counts.max():,}", size, weight="bold") + 0.1), size


def _write_counts(axes: Any, counts: NDArray[np.int64], colours: NDArray[np.floating[Any]], size: float) -> None:
    """Write the counts into the cells in a colour with enough contrast. A dot means 0."""
    rows, columns = np.nonzero(counts == 0)
    axes.plot(columns, rows, linestyle="", marker=".", markersize=1.5, color=style.MUTED)
    for row, column in np.argwhere(counts):
        correct = row == column
        colour = "white" if not correct and style.is_dark(colours[row, column]) else style.INK
        font = {"color": colour, "fontsize": size, "fontweight": "bold" if correct else "normal"}
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center_baseline", **font)


def _name_cells(axes: Any, names: Sequence[str], recalls: Sequence[float]) -> None:
    positions = np.arange(len(names))
    axes.set_xticks(positions, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(positions, names)
    axes.set(xlabel="predicted class", ylabel="actual class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(positions[1:] - 0.5, minor=True)
    axes.set_yticks(positions[1:] - 0.5, minor=True)
    axes.grid(which="minor", color=style.FAINT, linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.add_patch(Rectangle((-0.5, -0.5), len(names), len(names), fill=False, edgecolor=style.MUTED, linewidth=0.8))
    recall_axis = axes.secondary_yaxis("right")
    recall_axis.set_yticks(positions, [f"{100 * recall:.1f} %" for recall in recalls])
    recall_axis.tick_params(length=0)
    recall_axis.spines[:].set_visible(False)
    axes.annotate("recall", (1, 1), xytext=(3.5, 3.5), xycoords="axes fraction", textcoords="offset points")
