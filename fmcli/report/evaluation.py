"""The result of `fmcli evaluate`: scores of members, overall and for each class."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Evaluation
from fmcli.metrics.classification import ClassificationReport, most_frequent_confusions
from fmcli.metrics.coverage import accuracy_at_coverage, threshold_at_coverage
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, count, interval, percent, points
from fmcli.report.sheet import Sheet

_MAX_MATRIX_CLASSES = 40
_COVERAGES = (1.0, 0.95, 0.9, 0.8)


def evaluation_document(
    evaluations: Sequence[Evaluation], split: str, references: Sequence[ReferenceSpec | None]
) -> Document:
    """Return the scores of one or several members.

    Args:
        evaluations: The scores of each member.
        split: The split that was evaluated.
        references: Published scores of each member, if any.
    """
    pairs = list(zip(evaluations, references, strict=True))
    sheets = [sheet for evaluation, reference in pairs for sheet in evaluation_sheets(evaluation, split, reference)]
    members = [
        {**evaluation_payload(evaluation), "published_accuracy": reference and reference.accuracy_on(split)}
        for evaluation, reference in pairs
    ]
    records = [record for evaluation in evaluations for record in evaluation_records(evaluation)]
    return Document(sheets, {"split": split, "members": members}, records)


def evaluation_sheets(evaluation: Evaluation, split: str, reference: ReferenceSpec | None = None) -> list[Sheet]:
    """Return tables of a classifier's scores for each class, accuracy at several coverages, and confusions."""
    report, calibration = evaluation.report, evaluation.calibration
    notes = [
        f"Loss {calibration.loss:.4f}, Brier score {calibration.brier:.4f}, calibration error "
        f"{percent(calibration.ece)} % in bins of equal width, {percent(calibration.ece_equal_mass)} % in bins of "
        "equal mass",
    ]
    if reference is not None and (published := reference.accuracy_on(split)) is not None:
        difference = points(report.accuracy - published)
        notes.append(f"Published: {percent(published)} % (this result: {difference} points); {reference.source}")
    scores = Sheet(
        title=f"{evaluation.name} on {split}: accuracy {percent(report.accuracy)} % (95 % interval "
        f"{interval(*report.interval)}) of {count(report.macro.support, 'image')}",
        rows=[
            {
                "Class": record["class"],
                ">Precision": percent(record["precision"]),
                ">Recall": percent(record["recall"]),
                ">F1": percent(record["f1"]),
                ">Support": record["support"],
            }
            for record in _class_records(report)
        ],
        n_totals=2,
        notes=notes,
    )
    coverages = Sheet(
        title="Accuracy without the least certain images",
        rows=[
            {
                ">Images kept": percent(record["kept"]),
                ">Accuracy": percent(record["accuracy"]),
                ">Lowest probability": f"{record['probability_from']:.4f}",
            }
            for record in _coverage_records(evaluation)
        ],
    )
    return [scores, coverages, *_confusion_sheets(report)]


def _coverage_records(evaluation: Evaluation) -> list[dict[str, float]]:
    curve = evaluation.coverage
    return [
        {
            "kept": coverage,
            "accuracy": accuracy_at_coverage(curve, coverage),
            "probability_from": threshold_at_coverage(curve, coverage),
        }
        for coverage in _COVERAGES
    ]


def evaluation_records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one record per class, then the averages."""
    overall = {"member": evaluation.name, "accuracy": evaluation.report.accuracy}
    return [overall | row for row in _class_records(evaluation.report)]


def _class_records(report: ClassificationReport) -> list[dict[str, Any]]:
    names = [*report.class_names, "macro average", "weighted average"]
    scores = [*report.classes, report.macro, report.weighted]
    return [{"class": name, **asdict(score)} for name, score in zip(names, scores, strict=True)]


def _confusion_sheets(report: ClassificationReport) -> list[Sheet]:
    """Return the most frequent confusions, after the confusion matrix unless there are too many classes."""
    names = report.class_names
    matrix = Sheet(
        title="Confusion matrix (rows: actual class; columns: predicted class, by number)",
        rows=[
            {"Class": f"{label} {names[label]}", **{f">{other}": count or "·" for other, count in enumerate(counts)}}
            for label, counts in enumerate(report.confusion.tolist())
        ],
        matrix=True,
    )
    listed = [
        f"  {pair.count:>5,}  {pair.actual} predicted as {pair.predicted}" for pair in most_frequent_confusions(report)
    ]
    worst = Sheet(notes=["Most frequent confusions:", *listed] if listed else ["No confusions."])
    return [matrix, worst] if len(names) <= _MAX_MATRIX_CLASSES else [worst]


def brief_payload(evaluation: Evaluation) -> dict[str, Any]:
    """Return a classifier's overall scores for JSON."""
    return {
        "name": evaluation.name,
        "accuracy": evaluation.report.accuracy,
        "accuracy_interval": evaluation.report.interval,
        **asdict(evaluation.calibration),
    }


def evaluation_payload(evaluation: Evaluation) -> dict[str, Any]:
    """Return all scores of a classifier for JSON."""
    report = evaluation.report
    return {
        **brief_payload(evaluation),
        "coverage": _coverage_records(evaluation),
        "aurc": evaluation.coverage.aurc,
        "classes": _class_records(report)[:-2],
        "macro_average": asdict(report.macro),
        "weighted_average": asdict(report.weighted),
        "confusion_matrix": report.confusion.tolist(),
        "most_frequent_confusions": [asdict(pair) for pair in most_frequent_confusions(report)],
    }
