"""Draw matplotlib figures without matplotlib's global state, and write them with `save_figure`."""

from fmcli.report.plots.class_counts import class_count_figure
from fmcli.report.plots.classified import ClassifiedSplit
from fmcli.report.plots.confidence import coverage_figure, reliability_figure
from fmcli.report.plots.confusion import confusion_figure
from fmcli.report.plots.curves import curve_figure
from fmcli.report.plots.files import check_ending, save_figure
from fmcli.report.plots.images import SAMPLES_PER_CLASS, mistake_figure, prediction_figure, sample_figure
from fmcli.report.plots.precision_recall import precision_recall_figure
from fmcli.report.plots.search import search_figure

__all__ = [
    "SAMPLES_PER_CLASS",
    "ClassifiedSplit",
    "check_ending",
    "class_count_figure",
    "confusion_figure",
    "coverage_figure",
    "curve_figure",
    "mistake_figure",
    "precision_recall_figure",
    "prediction_figure",
    "reliability_figure",
    "sample_figure",
    "save_figure",
    "search_figure",
]
