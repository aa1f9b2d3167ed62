"""Figures of confidence: the reliability diagram, and accuracy against coverage."""

import numpy as np
from matplotlib.figure import Figure

from fmcli.metrics.calibration import reliability_bins
from fmcli.metrics.comparison import wilson_interval
from fmcli.metrics.coverage import accuracy_at_coverage, coverage_curve
from fmcli.report.plots import style
from fmcli.report.plots.classified import ClassifiedSplit

_WIDTH = 6.4  # inches


@style.house_style()
def reliability_figure(classified: ClassifiedSplit) -> Figure:
    """Draw the reliability diagram: accuracy by confidence.

    Each bin shows its accuracy with a 95 % interval at its mean confidence. The panel below shows the number of images.
    """
    bins = reliability_bins(classified.probabilities, classified.labels)
    finding = f"expected calibration error {100 * bins.ece:.2f} %"
    figure = style.new_figure(_WIDTH, 6.2, "Reliability", classified.title, finding)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = np.flatnonzero(bins.counts)
    left, width = bins.edges[filled], 0.94 * np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    ends = [
        wilson_interval(round(share * count), int(count))
        for share, count in zip(accuracy, bins.counts[filled], strict=True)
    ]
    reach = np.abs(np.array(ends).T - accuracy)  # (2, n_filled): below and above
    above.bar(left, accuracy, width, align="edge", color=style.BLUE, alpha=0.25, label="accuracy of the bin")
    above.plot((0, 1), (0, 1), color=style.MUTED, linestyle=(0, (4, 2)), linewidth=1.2, label="perfect calibration")
    above.errorbar(
        confidence, accuracy, reach, fmt="o", color=style.BLUE, markersize=4.5, capsize=2.5, linewidth=1.2,
        label="95 % interval at the mean confidence", clip_on=False,
    )  # fmt: skip
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    above.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2, columnspacing=1.2)
    bars = below.bar(left, bins.counts[filled], width, align="edge", color=style.BLUE)
    below.bar_label(bars, [f"{count:,}" for count in bins.counts[filled]], padding=2, fontsize=6.5)
    below.set(xlabel="confidence (probability of the predicted class)", ylabel="images")
    below.margins(y=0.2)
    for axes in (above, below):
        axes.grid()
        style.percent_ticks(axes.xaxis)
    style.percent_ticks(above.yaxis)
    style.count_ticks(below.yaxis, 3)
    return figure


# --- accuracy against coverage ----------------------------------------------------------------------------


@style.house_style()
def coverage_figure(classified: ClassifiedSplit) -> Figure:
    """Draw accuracy against coverage. Coverage is the share of images that are kept; they have the highest confidence.

    The panel below shows the lowest confidence of the kept images, which can be used as a threshold.
    """
    curve = coverage_curve(classified.confidence, classified.correct)
    accuracies = {share: accuracy_at_coverage(curve, share) for share in (0.8, 0.9, 1.0)}
    finding = (
        f"{100 * accuracies[1]:.2f} % of all images correct, {100 * accuracies[0.9]:.2f} % of the most certain 90 %"
    )
    figure = style.new_figure(_WIDTH, 5.4, "Accuracy against coverage", classified.title, finding)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    visible = style.visible_points(curve.coverage, steps=500)
    above.plot(curve.coverage[visible], curve.accuracy[visible], color=style.BLUE, linewidth=1.8)
    for share, accuracy in accuracies.items():  # labels above the axes never overlap the curve
        above.plot(share, accuracy, "o", color=style.BLUE, markersize=4.5, clip_on=False)
        label = above.annotate(
            f"{100 * accuracy:.2f} %", (share, accuracy), (share, 1.02), textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.6},
        )  # fmt: skip
        label.set(ha="center", fontsize=style.SMALL_SIZE)
    above.set(xlim=(0, 1), ylabel="accuracy")
    above.margins(y=0.15)
    above.set_ylim(top=min(above.get_ylim()[1], 1.02))
    below.plot(curve.coverage[visible], curve.thresholds[visible], color=style.BLUE, linewidth=1.8)
    below.set(xlabel="coverage (share of images kept, the most certain first)", ylabel="lowest confidence")
    below.set_ylim(0, 1.02)
    for axes in (above, below):
        axes.grid()
        style.percent_ticks(axes.yaxis)
    style.percent_ticks(below.xaxis)
    return figure
