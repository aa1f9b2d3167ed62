"""The figure of precision against recall."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.metrics.classification import PrecisionRecallCurve, precision_recall_curves
from fmcli.report.plots import style
from fmcli.report.plots.classified import ClassifiedSplit

_MAX_BACKGROUND_CURVES = 12  # with more classes, each panel shows only one curve


@style.house_style()
def precision_recall_figure(classified: ClassifiedSplit) -> Figure:
    """Draw precision against recall, one panel per class with the area under its curve.

    Raises:
        DataError: A class has no images, so its curve is undefined.
    """
    _check_classes(classified)
    names = classified.class_names
    curves = precision_recall_curves(classified.probabilities, classified.labels)
    n_columns = min(5, len(curves))
    n_rows = -(-len(curves) // n_columns)
    side = 1.95 if n_columns > 2 else 2.4
    width = max(side * n_columns + 0.6, style.MIN_TITLE_WIDTH)
    has_background = len(curves) <= _MAX_BACKGROUND_CURVES
    finding = f"mean area {np.mean([curve.average_precision for curve in curves]):.4f}"
    finding += "; in grey, the other classes" if has_background else ""
    figure = style.new_figure(width, side * n_rows + 0.4, "Precision against recall", classified.title, finding)
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for index, (axes, name, curve) in enumerate(zip(panels.flat, names, curves, strict=False)):
        for other in curves if has_background else ():
            axes.plot(*_visible_part(other, 100), color=style.FAINT, linewidth=0.7, drawstyle="steps-post")
        recall, precision = _visible_part(curve, 300)
        axes.plot(recall, precision, color=style.BLUE, linewidth=1.8, drawstyle="steps-post")
        axes.fill_between(recall, precision, color=style.BLUE, alpha=0.12, linewidth=0, step="post")
        axes.set_title(style.shorten(name, side - 0.3, style.BODY_SIZE, weight="bold"))
        axes.text(0.06, 0.08, f"area {curve.average_precision:.4f}", fontsize=style.NAME_SIZE)
        axes.tick_params(labelbottom=index + n_columns >= len(curves))
        axes.grid()
    panels.flat[0].set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))  # shared by all
    figure.supxlabel("recall", fontsize=style.BODY_SIZE)
    figure.supylabel("precision", fontsize=style.BODY_SIZE)
    return figure


def _check_classes(classified: ClassifiedSplit) -> None:
    """Check that every class has images; without them its recall is undefined."""
    names = classified.class_names
    counts = np.bincount(classified.labels, minlength=len(names))
    if not counts.all():
        missing = printable(names[int(counts.argmin())])
        raise DataError(
            f"class {missing!r} has no {classified.split} images, so its precision-recall curve is undefined",
            hint="choose another split, or another figure, such as confusion",
        )


def _visible_part(curve: PrecisionRecallCurve, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    visible = style.visible_points(curve.recall, curve.precision, steps=steps)
    return curve.recall[visible], curve.precision[visible]
