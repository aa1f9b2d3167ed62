"""Figures of what predictions are worth: confusions, precision against recall, reliability, coverage."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.metrics import (
    accuracy_at_coverage,
    coverage_curve,
    reliability_bins,
    wilson_interval,
)
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.style import (
    BLUE,
    HEADING,
    MUTED,
    NAMES,
    count_ticks,
    percent_ticks,
    set_title,
    styled,
)

_NARROWEST = 5.0  # inches, for the title's sake
_NAME = 1.8  # inches a name may take
_MOST_COUNTS = 60  # classes in a matrix whose cells have room for numbers
_MOST_BEHIND = 12  # classes whose curves still stand behind each other's
_DIAGONAL = "#E3EBF2"


@styled
def reliability_figure(classified: ClassifiedSplit) -> Figure:
    """Return the reliability diagram: how often the likeliest class is right, by how likely it was said to be.

    Each bin's bar has its accuracy's 95 % interval, at the bin's mean confidence; below stands how many images it has.
    """
    bins = reliability_bins(classified.probabilities, classified.labels)
    figure = Figure(figsize=(6.4, HEADING + 6.2), layout="constrained")
    set_title(figure, "Reliability", classified.title, f"expected calibration error {100 * bins.ece:.2f} %")
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
def coverage_figure(classified: ClassifiedSplit) -> Figure:
    """Return the accuracy of the images that are kept when the least certain are set aside, and what keeps them.

    Below stands the confidence that the least certain of the kept images has: what to give `--reject-below`.
    """
    curve = coverage_curve(classified.confidence, classified.correct)
    figure = Figure(figsize=(6.4, HEADING + 5.2), layout="constrained")
    whole, most = accuracy_at_coverage(curve, 1.0), accuracy_at_coverage(curve, 0.9)
    said = f"{100 * whole:.2f} % of all images right, {100 * most:.2f} % of the surest 90 %"
    set_title(figure, "Accuracy against coverage", classified.title, said)
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
