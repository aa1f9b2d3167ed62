"""The result of `fmcli evaluate`: scores of members, overall and for each class."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Evaluation
from fmcli.metrics.classification import ClassificationReport, most_frequent_confusions
from fmcli.metrics.coverage import accuracy_at_coverage, threshold_at_coverage
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, Sheet, percent

_MAX_MATRIX_CLASSES = 40
_COVERAGES = (1.0, 0.95, 0.9, 0.8)


def evaluation_document(
    evaluations: Sequence[Evaluation], split: str, references: Sequence[ReferenceSpec | None]
) -> Document:
    """Return the scores of one or more members.

    Args:
        evaluations: The scores of each member.
        split: The split that was evaluated.
        references: Published scores of each member, if any.
    """
    pairs = list(zip(evaluations, references, strict=True))
    sheets = [sheet for evaluation, reference in pairs for sheet in evaluation_sheets(evaluation, split, reference)]
    members = [
        {**evaluation_payload(evaluation), "published_accuracy": published_accuracy(reference, split)}
        for evaluation, reference in pairs
    ]
    records = [row for evaluation in evaluations for row in evaluation_records(evaluation)]
    return Document(sheets, {"split": split, "members": members}, records)


def evaluation_sheets(evaluation: Evaluation, split: str, reference: ReferenceSpec | None = None) -> list[Sheet]:
    """Return tables of a classifier's scores for each class, accuracy at several coverages, and confusions."""
    report, calibration = evaluation.report, evaluation.calibration
    low, high = report.interval
    title = (
        f"{evaluation.name} on {split}: accuracy {percent(report.accuracy)} % "
        f"(95 % interval {percent(low)} to {percent(high)}) of {report.macro.support:,} images"
    )
    notes = [
        f"Loss {calibration.loss:.4f}, Brier score {calibration.brier:.4f}, calibration error "
        f"{percent(calibration.ece)} % in bins of equal width, {percent(calibration.ece_equal_mass)} % in bins of "
        "equal mass",
    ]
    published = published_accuracy(reference, split)
    if reference is not None and published is not None:
        difference = 100 * (report.accuracy - published)
        notes.append(f"Published: {percent(published)} % ({difference:+.2f} here); {reference.source}")
    scores = Sheet(
        title=title,
        columns=["Class", ">Precision", ">Recall", ">F1", ">Support"],
        rows=[
            [row["class"], *(percent(row[key]) for key in ("precision", "recall", "f1")), f"{row['support']:,}"]
            for row in _class_records(report)
        ],
        summary=2,
        notes=notes,
    )
    return [scores, _coverage_sheet(evaluation), *_confusion_sheets(report)]


def _coverage_sheet(evaluation: Evaluation) -> Sheet:
    return Sheet(
        title="Accuracy without the least certain images",
        columns=[">Images kept", ">Accuracy", ">Lowest probability"],
        rows=[
            [percent(row["kept"]), percent(row["accuracy"]), f"{row['probability_from']:.4f}"]
            for row in _coverage_records(evaluation)
        ],
    )


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


def published_accuracy(reference: ReferenceSpec | None, split: str) -> float | None:
    """Return the published accuracy on a split, if any."""
    return getattr(reference, f"{split}_accuracy", None)


def evaluation_records(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one record per class, then the averages."""
    overall = {"member": evaluation.name, "accuracy": evaluation.report.accuracy}
    return [overall | row for row in _class_records(evaluation.report)]


def _class_records(report: ClassificationReport) -> list[dict[str, Any]]:
    names = [*report.class_names, "macro average", "weighted average"]
    scores = [*report.classes, report.macro, report.weighted]
    return [{"class": name, **asdict(score)} for name, score in zip(names, scores, strict=True)]


def _confusion_sheets(report: ClassificationReport) -> list[Sheet]:
    names = report.class_names
    worst = most_frequent_confusions(report)
    listed = [f"  {pair.count:>5,}  {pair.actual} taken for {pair.predicted}" for pair in worst]
    notes = ["Most frequent confusions:", *listed] if worst else ["No confusions."]
    if len(names) > _MAX_MATRIX_CLASSES:
        return [Sheet(columns=(), rows=(), notes=notes)]
    matrix = Sheet(
        title="Confusion matrix (rows: actual class; columns: predicted class, by number)",
        columns=["Class", *(f">{label}" for label in range(len(names)))],
        rows=[
            [f"{label} {names[label]}", *(f"{count}" if count else "·" for count in row)]
            for label, row in enumerate(report.confusion.tolist())
        ],
        matrix=True,
    )
    return [matrix, Sheet(columns=(), rows=(), notes=notes)]


def brief_payload(evaluation: Evaluation) -> dict[str, Any]:
    """Return a classifier's overall scores for JSON."""
    return {
        "name": evaluation.name,
        "accuracy": evaluation.report.accuracy,
        "accuracy_interval": list(evaluation.report.interval),
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
