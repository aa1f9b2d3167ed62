"""Figures: values in, a matplotlib `Figure` out; `save_figure` writes it. They never touch matplotlib's own state."""

from fmcli.report.plots.answers import Answers
from fmcli.report.plots.files import check_ending, save_figure
from fmcli.report.plots.images import SAMPLES_OF_EACH, mistake_figure, prediction_figure, sample_figure
from fmcli.report.plots.learning import class_count_figure, curve_figure
from fmcli.report.plots.scores import confusion_figure, coverage_figure, precision_recall_figure, reliability_figure
from fmcli.report.plots.trials import trial_figure

__all__ = [
    "SAMPLES_OF_EACH",
    "Answers",
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
    "trial_figure",
]
