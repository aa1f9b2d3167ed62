"""Figures of what predictions are worth: confusions, precision against recall, reliability, coverage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.metrics import (
    PrecisionRecallCurve,
    accuracy_at_coverage,
    classification_report,
    coverage_curve,
    precision_recall_curves,
    reliability_bins,
    wilson_interval,
)
from fmcli.report.plots.answers import Answers
from fmcli.report.plots.style import (
    BLUE,
    BODY,
    ERRORS,
    FAINT,
    HEADING,
    INK,
    MUTED,
    NAMES,
    SMALL,
    count_ticks,
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


# --- confusion matrix -------------------------------------------------------------------------------------


@styled
def confusion_figure(answers: Answers) -> Figure:
    """Return the confusion matrix: counts, and in colour what part of an actual class was taken for another.

    The diagonal has no part in the scale of colours, so that rare mistakes show; each class's recall stands beside
    its row.
    """
    report = classification_report(answers.labels, answers.choices, class_names=answers.class_names)
    counts, n_classes = report.confusion, len(report.class_names)
    names = [fit(name, _NAME, NAMES) for name in report.class_names]
    cell, size = _cell(counts)
    beside = max(text_width(name, NAMES) for name in names)
    across, down = n_classes * cell + beside + 1.75, n_classes * cell + 0.7 * beside + 0.7
    figure = Figure(figsize=(max(across, _NARROWEST), HEADING + down), layout="constrained")
    accuracy = f"{100 * report.accuracy:.2f} % of {len(answers.labels):,} images right"
    set_title(figure, "Confusion matrix", answers.title, accuracy)
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


# --- precision against recall -----------------------------------------------------------------------------


@styled
def precision_recall_figure(answers: Answers) -> Figure:
    """Return precision against recall, a panel a class with the area below its curve, the other classes behind it.

    Raises:
        DataError: A class has no image, so that it has no curve.
    """
    _check_classes(answers)
    names = answers.class_names
    curves = precision_recall_curves(answers.probabilities, answers.labels)
    across = min(5, len(curves))
    down = -(-len(curves) // across)
    side = 1.95 if across > 2 else 2.4
    size = (max(side * across + 0.6, _NARROWEST), HEADING + side * down + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    mean = float(np.mean([curve.average_precision for curve in curves]))
    behind = len(curves) <= _MOST_BEHIND
    others = "; in grey, the other classes" if behind else ""
    set_title(figure, "Precision against recall", answers.title, f"mean area {mean:.4f}{others}")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for place, (axes, name, curve) in enumerate(zip(panels.flat, names, curves, strict=False)):
        for other in curves if behind else ():
            axes.plot(*_thinned(other, 100), color=FAINT, linewidth=0.7, drawstyle="steps-post")
        recall, precision = _thinned(curve, 300)
        axes.plot(recall, precision, color=BLUE, linewidth=1.8, drawstyle="steps-post")
        axes.fill_between(recall, precision, color=BLUE, alpha=0.12, linewidth=0, step="post")
        axes.set_title(fit(name, side - 0.3, BODY, weight="bold"))
        axes.text(0.06, 0.08, f"area {curve.average_precision:.4f}", fontsize=NAMES)
        axes.tick_params(labelbottom=place + across >= len(curves))
        axes.grid()
    panels.flat[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))  # shared by all
    figure.supxlabel("recall", fontsize=BODY)
    figure.supylabel("precision", fontsize=BODY)
    return figure


def _check_classes(answers: Answers) -> None:
    """Refuse a class without images, whose recall is not defined."""
    names = answers.class_names
    counts = np.bincount(answers.labels, minlength=len(names))
    if not counts.all():
        missing = printable(names[int(counts.argmin())])
        raise DataError(
            f"the {answers.split} images have none of class {missing!r}, so its precision-recall curve is not defined",
            hint="choose other images with --split, or another figure, such as confusion",
        )


def _thinned(curve: PrecisionRecallCurve, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall and precision where they change by what can be seen: a file needs no point for each image."""
    places = np.round(np.stack([curve.recall, curve.precision]) * steps)  # (2, n_points)
    kept = (np.diff(places, prepend=-1) != 0).any(axis=0)
    return curve.recall[kept], curve.precision[kept]


# --- reliability ------------------------------------------------------------------------------------------


@styled
def reliability_figure(answers: Answers) -> Figure:
    """Return the reliability diagram: how often the likeliest class is right, by how likely it was said to be.

    Each bin's bar has its accuracy's 95 % interval, at the bin's mean confidence; below stands how many images it has.
    """
    bins = reliability_bins(answers.probabilities, answers.labels)
    figure = Figure(figsize=(6.4, HEADING + 6.2), layout="constrained")
    set_title(figure, "Reliability", answers.title, f"expected calibration error {100 * bins.ece:.2f} %")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = np.flatnonzero(bins.counts)
    left, width = bins.edges[filled], 0.94 * np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    ends = [
        wilson_interval(round(part * count), int(count))
        for part, count in zip(accuracy, bins.counts[filled], strict=True)
    ]
    reach = np.abs(np.array(ends).T - accuracy)  # (2, n_filled): below and above
    above.bar(left, accuracy, width, align="edge", color=BLUE, alpha=0.25, label="accuracy of the bin")
    above.plot((0, 1), (0, 1), color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2, label="as it should be")
    above.errorbar(
        confidence, accuracy, reach, fmt="o", color=BLUE, markersize=4.5, capsize=2.5, linewidth=1.2,
        label="its 95 % interval, at the mean confidence", clip_on=False,
    )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2, columnspacing=1.2)
    bars = below.bar(left, bins.counts[filled], width, align="edge", color=BLUE)
    below.bar_label(bars, [f"{count:,}" for count in bins.counts[filled]], padding=2, fontsize=6.5)
    below.set(xlabel="confidence: the probability of the likeliest class", ylabel="images")
    below.margins(y=0.2)
    for axes in (above, below):
        axes.grid()
        percent_ticks(axes.xaxis)
    percent_ticks(above.yaxis)
    count_ticks(below.yaxis)
    return figure


# --- accuracy against coverage ----------------------------------------------------------------------------


@styled
def coverage_figure(answers: Answers) -> Figure:
    """Return the accuracy of the images that are kept when the least certain are set aside, and what keeps them.

    Below stands the confidence that the least certain of the kept images has: what to give `--reject-below`.
    """
    curve = coverage_curve(answers.chosen_probability, answers.right)
    figure = Figure(figsize=(6.4, HEADING + 5.2), layout="constrained")
    whole, most = accuracy_at_coverage(curve, 1.0), accuracy_at_coverage(curve, 0.9)
    said = f"{100 * whole:.2f} % of all images right, {100 * most:.2f} % of the surest 90 %"
    set_title(figure, "Accuracy against coverage", answers.title, said)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    drawn = _spread(curve.coverage, 500)
    above.plot(curve.coverage[drawn], curve.accuracy[drawn], color=BLUE, linewidth=1.8)
    for share in (0.8, 0.9, 1.0):
        accuracy = accuracy_at_coverage(curve, share)
        above.plot(share, accuracy, "o", color=BLUE, markersize=4.5, clip_on=False)
        above.annotate(
            f"{100 * accuracy:.2f} %", (share, accuracy), xytext=(-6, -4), textcoords="offset points", ha="right",
            va="top", fontsize=NAMES,
        )  # fmt: skip
    above.set(xlim=(0, 1), ylabel="accuracy")
    above.margins(y=0.15)
    below.plot(curve.coverage[drawn], curve.thresholds[drawn], color=BLUE, linewidth=1.8)
    below.set(xlabel="coverage: the part of the images that is kept, the surest first", ylabel="least confidence")
    below.set_ylim(0, 1.02)
    for axes in (above, below):
        axes.grid()
        percent_ticks(axes.yaxis)
    percent_ticks(below.xaxis)
    return figure


def _spread(values: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Return the places at which values change by what can be seen."""
    return np.flatnonzero(np.diff(np.round(values * steps), prepend=-1))
