"""Metrics: functions of arrays that return numbers.

- `classification`: accuracy, precision, recall and F1 of predicted labels.
- `calibration`: calibration of probabilities, and temperature scaling.
- `coverage`: accuracy on the images with the highest confidence.
- `diversity`: differences between the predictions of ensemble members.
- `comparison`: confidence intervals and significance tests.
- `arrays`: array types.
"""

from fmcli.metrics.arrays import Floats, Labels
from fmcli.metrics.calibration import (
    BINNINGS,
    Calibration,
    ReliabilityBins,
    apply_temperature,
    calibration,
    calibration_of_probabilities,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from fmcli.metrics.classification import (
    ClassificationReport,
    ClassScores,
    Confusion,
    PrecisionRecallCurve,
    classification_report,
    most_frequent_confusions,
    precision_recall_curves,
)
from fmcli.metrics.comparison import (
    CochranTest,
    CrossedTest,
    PairedTest,
    bootstrap_difference,
    cochran_q_test,
    crossed_test,
    holm_correction,
    mcnemar_test,
    mean_interval,
    wilson_interval,
)
from fmcli.metrics.coverage import CoverageCurve, accuracy_at_coverage, coverage_curve, threshold_at_coverage
from fmcli.metrics.diversity import PairwiseDiversity, pairwise_disagreement, pairwise_diversity

__all__ = [
    "BINNINGS",
    "Calibration",
    "ClassScores",
    "ClassificationReport",
    "CochranTest",
    "Confusion",
    "CoverageCurve",
    "CrossedTest",
    "Floats",
    "Labels",
    "PairedTest",
    "PairwiseDiversity",
    "PrecisionRecallCurve",
    "ReliabilityBins",
    "accuracy_at_coverage",
    "apply_temperature",
    "bootstrap_difference",
    "calibration",
    "calibration_of_probabilities",
    "classification_report",
    "cochran_q_test",
    "coverage_curve",
    "crossed_test",
    "expected_calibration_error",
    "fit_temperature",
    "holm_correction",
    "mcnemar_test",
    "mean_interval",
    "most_frequent_confusions",
    "pairwise_disagreement",
    "pairwise_diversity",
    "precision_recall_curves",
    "reliability_bins",
    "threshold_at_coverage",
    "wilson_interval",
]
