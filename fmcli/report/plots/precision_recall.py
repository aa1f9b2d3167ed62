"""Figures of what predictions are worth: confusions, precision against recall, reliability, coverage."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.metrics import (
    PrecisionRecallCurve,
    precision_recall_curves,
)
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.style import (
    BLUE,
    BODY,
    FAINT,
    HEADING,
    NAMES,
    fit,
    set_title,
    styled,
)

_NARROWEST = 5.0  # inches, for the title's sake
_NAME = 1.8  # inches a name may take
_MOST_COUNTS = 60  # classes in a matrix whose cells have room for numbers
_MOST_BEHIND = 12  # classes whose curves still stand behind each other's
_DIAGONAL = "#E3EBF2"


@styled
def precision_recall_figure(classified: ClassifiedSplit) -> Figure:
    """Return precision against recall, a panel a class with the area below its curve, the other classes behind it.

    Raises:
        DataError: A class has no image, so that it has no curve.
    """
    _check_classes(classified)
    names = classified.class_names
    curves = precision_recall_curves(classified.probabilities, classified.labels)
    across = min(5, len(curves))
    down = -(-len(curves) // across)
    side = 1.95 if across > 2 else 2.4
    size = (max(side * across + 0.6, _NARROWEST), HEADING + side * down + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    mean = float(np.mean([curve.average_precision for curve in curves]))
    behind = len(curves) <= _MOST_BEHIND
    others = "; in grey, the other classes" if behind else ""
    set_title(figure, "Precision against recall", classified.title, f"mean area {mean:.4f}{others}")
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


def _check_classes(classified: ClassifiedSplit) -> None:
    """Refuse a class without images, whose recall is not defined."""
    names = classified.class_names
    counts = np.bincount(classified.labels, minlength=len(names))
    if not counts.all():
        missing = printable(names[int(counts.argmin())])
        raise DataError(
            f"no {classified.split} image is of class {missing!r}, so its precision-recall curve is undefined",
            hint="choose other images with --split, or another figure, such as confusion",
        )


def _thinned(curve: PrecisionRecallCurve, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recall and precision where they change by what can be seen: a file needs no point for each image."""
    places = np.round(np.stack([curve.recall, curve.precision]) * steps)  # (2, n_points)
    kept = (np.diff(places, prepend=-1) != 0).any(axis=0)
    return curve.recall[kept], curve.precision[kept]
