"""Trainings and evaluations as documents."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import EnsembleEvaluation, Evaluation
from fmcli.events import EpochFinished
from fmcli.metrics import ClassificationReport, most_frequent_confusions
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, Record, Sheet, percent

_MOST_CLASSES_IN_MATRIX = 40


# --- train ------------------------------------------------------------------------------------------------


def history_document(folder: str, histories: Mapping[str, Sequence[EpochFinished]]) -> Document:
    """Return every epoch of every member, and where the run is."""
    sheets = [
        Sheet(
            title=f"{member}, trained afresh for as many epochs as were best" if afresh else member,
            columns=[
                ">Epoch",
                ">Rate",
                ">Loss",
                ">Accuracy",
                ">Val. loss",
                ">Val. accuracy",
                ">Seconds",
                ">Images/s",
            ],
            rows=[_epoch_row(epoch) for epoch in history if epoch.afresh == afresh],
        )
        for member, history in histories.items()
        for afresh in dict.fromkeys(epoch.afresh for epoch in history)
    ]
    last = Sheet(columns=(), rows=(), notes=[f"Run: {folder}", f"Next: fmcli ensemble evaluate {shlex.quote(folder)}"])
    records = [asdict(epoch) for history in histories.values() for epoch in history]
    return Document([*sheets, last], {"run": folder, "epochs": records}, records)


def _epoch_row(epoch: EpochFinished) -> list[str]:
    validation_loss = "" if epoch.validation_loss is None else f"{epoch.validation_loss:.4f}"
    return [
        str(epoch.epoch),
        f"{epoch.lr:.2e}",
        f"{epoch.train_loss:.4f}",
        percent(epoch.train_accuracy),
        validation_loss,
        percent(epoch.validation_accuracy),
        f"{epoch.seconds:.1f}",
        f"{epoch.images_per_second:,.0f}",
    ]


# --- evaluate ---------------------------------------------------------------------------------------------


def evaluation_document(
    evaluations: Sequence[Evaluation], split: str, references: Sequence[ReferenceSpec | None]
) -> Document:
    """Return the scores of one or more members."""
    sheets = [
        sheet
        for evaluation, reference in zip(evaluations, references, strict=True)
        for sheet in _evaluation_sheets(evaluation, split, reference)
    ]
    payload = {
        "split": split,
        "members": [
            {**_evaluation_payload(evaluation), "published_accuracy": _published(reference, split)}
            for evaluation, reference in zip(evaluations, references, strict=True)
        ],
    }
    records = [
        {"member": evaluation.name, **row} for evaluation in evaluations for row in _class_records(evaluation.report)
    ]
    return Document(sheets, payload, records)


def _evaluation_sheets(evaluation: Evaluation, split: str, reference: ReferenceSpec | None = None) -> list[Sheet]:
    report, trust = evaluation.report, evaluation.calibration
    low, high = report.interval
    title = (
        f"{evaluation.name} on {split}: accuracy {percent(report.accuracy)} % "
        f"(95 % interval {percent(low)} to {percent(high)}) of {report.macro.support:,} images"
    )
    notes = [f"Loss {trust.loss:.4f}, Brier score {trust.brier:.4f}, calibration error {percent(trust.ece)} %"]
    published = _published(reference, split)
    if reference is not None and published is not None:
        difference = 100 * (report.accuracy - published)
        notes.append(f"Published: {percent(published)} % ({difference:+.2f} here); {reference.source}")
    return [
        Sheet(
            title=title,
            columns=["Class", ">Precision", ">Recall", ">F1", ">Support"],
            rows=[_score_row(row) for row in _class_records(report)],
            summary=2,
            notes=notes,
        ),
        *_confusion_sheets(report),
    ]


def _published(reference: ReferenceSpec | None, split: str) -> float | None:
    return getattr(reference, f"{split}_accuracy", None)


def _score_row(row: Record) -> list[str]:
    scores = [percent(row[key]) for key in ("precision", "recall", "f1")]
    return [row["class"], *scores, f"{row['support']:,}"]


def _class_records(report: ClassificationReport) -> list[dict[str, Any]]:
    named = [
        *zip(report.class_names, report.classes, strict=True),
        ("macro average", report.macro),
        ("weighted average", report.weighted),
    ]
    return [{"class": name, **asdict(scores)} for name, scores in named]


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
        wide=True,
    )
    return [matrix, Sheet(columns=(), rows=(), notes=notes)]


def _evaluation_payload(evaluation: Evaluation) -> dict[str, Any]:
    report = evaluation.report
    return {
        "name": evaluation.name,
        "accuracy": report.accuracy,
        "accuracy_interval": list(report.interval),
        **asdict(evaluation.calibration),
        "classes": _class_records(report)[:-2],
        "macro_average": asdict(report.macro),
        "weighted_average": asdict(report.weighted),
        "confusion_matrix": report.confusion.tolist(),
        "most_frequent_confusions": [asdict(pair) for pair in most_frequent_confusions(report)],
    }


# --- ensemble evaluate ------------------------------------------------------------------------------------


def ensemble_document(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> Document:
    """Return the vote beside each member, then the vote class by class.

    Args:
        evaluation: The vote and its members.
        reference: Published figures of the whole, if any.
    """
    everyone = [*evaluation.members, evaluation.vote]
    rule = evaluation.spec.vote
    table = Sheet(
        title=f"{rule.capitalize()} vote of {len(evaluation.members)} on {evaluation.split}",
        columns=["Member", ">Accuracy", ">95 % interval", ">Macro F1", ">Loss", ">Calib. err."],
        rows=[_member_row(one) for one in everyone],
        summary=1,
        emphasis=len(everyone) - 1,
        notes=[
            _gain_in_words(evaluation),
            f"Ties: {evaluation.n_ties:,} (decided by {evaluation.spec.tie}). "
            f"Two members disagree on {percent(evaluation.disagreement)} % of the images, on average.",
            "Loss and calibration error of the vote are those of its members' mean probability.",
        ],
    )
    sheets = [table, *_evaluation_sheets(evaluation.vote, evaluation.split, reference)]
    payload = {
        "split": evaluation.split,
        "vote": rule,
        "tie": evaluation.spec.tie,
        "ties": evaluation.n_ties,
        "pairwise_disagreement": evaluation.disagreement,
        "best_member": evaluation.best_member,
        "gain_over_best_member": asdict(evaluation.gain),
        "published_accuracy": _published(reference, evaluation.split),
        "ensemble": _evaluation_payload(evaluation.vote),
        "members": [_evaluation_payload(member) for member in evaluation.members],
    }
    records = [{"member": one.name, **row} for one in everyone for row in _class_records(one.report)]
    return Document(sheets, payload, records)


def _member_row(one: Evaluation) -> list[str]:
    low, high = one.report.interval
    return [
        one.name,
        percent(one.report.accuracy),
        f"{percent(low)} to {percent(high)}",
        percent(one.report.macro.f1),
        f"{one.calibration.loss:.4f}",
        percent(one.calibration.ece),
    ]


def _gain_in_words(evaluation: EnsembleEvaluation) -> str:
    gain, best = evaluation.gain, evaluation.best_member
    if gain.only_first == gain.only_second:
        return f"The vote is as accurate as its best member, {best}."
    way = "above" if gain.difference > 0 else "below"
    verdict = "a real difference" if gain.p_value < 0.05 else "chance alone could explain it"
    return (
        f"The vote is {abs(100 * gain.difference):.2f} points {way} its best member, {best} "
        f"(p = {gain.p_value:.2g}, McNemar's exact test): {verdict}."
    )
