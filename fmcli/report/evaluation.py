"""Trainings, and evaluations of members, as documents."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Evaluation
from fmcli.metrics import ClassificationReport, accuracy_at_coverage, most_frequent_confusions, threshold_at_coverage
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, Record, Sheet, percent

_MOST_CLASSES_IN_MATRIX = 40
_COVERAGES = (0.95, 0.9, 0.8)  # parts of the images that are kept


def evaluation_document(
    evaluations: Sequence[Evaluation], split: str, references: Sequence[ReferenceSpec | None]
) -> Document:
    """Return the scores of one or more members."""
    sheets = [
        sheet
        for evaluation, reference in zip(evaluations, references, strict=True)
        for sheet in evaluation_sheets(evaluation, split, reference)
    ]
    payload = {
        "split": split,
        "members": [
            {**evaluation_payload(evaluation), "published_accuracy": published_accuracy(reference, split)}
            for evaluation, reference in zip(evaluations, references, strict=True)
        ],
    }
    records = [
        {"member": evaluation.name, "accuracy": evaluation.report.accuracy, **row}
        for evaluation in evaluations
        for row in class_records(evaluation.report)
    ]
    return Document(sheets, payload, records)


def evaluation_sheets(evaluation: Evaluation, split: str, reference: ReferenceSpec | None = None) -> list[Sheet]:
    """Return the scores of one classifier: class by class, and what it mixes up."""
    report, trust = evaluation.report, evaluation.calibration
    low, high = report.interval
    title = (
        f"{evaluation.name} on {split}: accuracy {percent(report.accuracy)} % "
        f"(95 % interval {percent(low)} to {percent(high)}) of {report.macro.support:,} images"
    )
    notes = [
        f"Loss {trust.loss:.4f}, Brier score {trust.brier:.4f}, calibration error {percent(trust.ece)} % in bins of "
        f"equal width, {percent(trust.ece_equal_mass)} % in bins of equal mass",
    ]
    published = published_accuracy(reference, split)
    if reference is not None and published is not None:
        difference = 100 * (report.accuracy - published)
        notes.append(f"Published: {percent(published)} % ({difference:+.2f} here); {reference.source}")
    return [
        Sheet(
            title=title,
            columns=["Class", ">Precision", ">Recall", ">F1", ">Support"],
            rows=[_score_row(row) for row in class_records(report)],
            summary=2,
            notes=notes,
        ),
        _coverage_sheet(evaluation),
        *_confusion_sheets(report),
    ]


def _coverage_sheet(evaluation: Evaluation) -> Sheet:
    """Return how accurate the answers are when the least certain are set aside, and where that line lies."""
    curve = evaluation.coverage
    return Sheet(
        title="When the images that it is least sure of are set aside",
        columns=[">Kept", ">Accuracy", ">Probability from"],
        rows=[
            [
                percent(share),
                percent(accuracy_at_coverage(curve, share)),
                f"{threshold_at_coverage(curve, share):.4f}",
            ]
            for share in (1.0, *_COVERAGES)
        ],
    )


def published_accuracy(reference: ReferenceSpec | None, split: str) -> float | None:
    """Return the published accuracy on a split, if any."""
    return getattr(reference, f"{split}_accuracy", None)


def _score_row(row: Record) -> list[str]:
    scores = [percent(row[key]) for key in ("precision", "recall", "f1")]
    return [row["class"], *scores, f"{row['support']:,}"]


def class_records(report: ClassificationReport) -> list[dict[str, Any]]:
    """Return the scores of each class and their averages, an object each."""
    named = [
        *zip(report.class_names, report.classes, strict=True),
        ("macro average", report.macro),
        ("weighted average", report.weighted),
    ]
    return [
        {"class": name, "precision": of.precision, "recall": of.recall, "f1": of.f1, "support": of.support}
        for name, of in named
    ]


def _confusion_sheets(report: ClassificationReport) -> list[Sheet]:
    names = report.class_names
    worst = most_frequent_confusions(report)
    listed = [f"  {pair.count:>5,}  {pair.actual} taken for {pair.predicted}" for pair in worst]
    notes = ["Most frequent confusions:", *listed] if worst else ["No confusions."]
    if len(names) > _MOST_CLASSES_IN_MATRIX:
        return [Sheet(columns=(), rows=(), notes=notes)]
    matrix = Sheet(
        title="Confusion matrix (rows: actual; columns: predicted, by number)",
        columns=["Class", *(f">{label}" for label in range(len(names)))],
        rows=[
            [f"{label} {names[label]}", *(f"{count}" if count else "·" for count in row)]
            for label, row in enumerate(report.confusion.tolist())
        ],
        matrix=True,
    )
    return [matrix, Sheet(columns=(), rows=(), notes=notes)]


def evaluation_payload(evaluation: Evaluation) -> dict[str, Any]:
    """Return all that is said of one classifier, for JSON."""
    report = evaluation.report
    return {
        "name": evaluation.name,
        "accuracy": report.accuracy,
        "accuracy_interval": list(report.interval),
        **asdict(evaluation.calibration),
        "coverage": [
            {
                "kept": share,
                "accuracy": accuracy_at_coverage(evaluation.coverage, share),
                "probability_from": threshold_at_coverage(evaluation.coverage, share),
            }
            for share in (1.0, *_COVERAGES)
        ],
        "aurc": evaluation.coverage.aurc,
        "classes": class_records(report)[:-2],
        "macro_average": asdict(report.macro),
        "weighted_average": asdict(report.weighted),
        "confusion_matrix": report.confusion.tolist(),
        "most_frequent_confusions": [asdict(pair) for pair in most_frequent_confusions(report)],
    }
