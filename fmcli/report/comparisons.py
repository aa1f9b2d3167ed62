"""Ensembles that were compared, fitted, selected or averaged, as documents."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fmcli.ensemble import Combiner
from fmcli.ensemble.compare import Comparison, Composition, CompositionStudy, Contender
from fmcli.ensemble.select import Selection
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.ensembles import describe_rule, gain_in_words

_SURE = 0.05  # p-values below this are called real


# --- compare ----------------------------------------------------------------------------------------------


def comparison_document(comparison: Comparison) -> Document:
    """Return ensembles side by side, each against the first."""
    first, *others = comparison.contenders
    real = "differ" if comparison.agreement.p_value < _SURE else "do not differ, as far as these images tell"
    notes = [
        f"All together, they {real} (p = {comparison.agreement.p_value:.2g}, Cochran's Q).",
        *(
            gain_in_words(other.against_first, other.name, first.name)
            for other in others
            if other.against_first is not None
        ),
    ]
    if len(others) > 1:
        notes.append("Adjusted p: held against all these tests together, by Holm's method.")
    sheet = Sheet(
        title=f"{len(comparison.contenders)} ensembles on {comparison.split}, each against {first.name}",
        columns=[
            "Ensemble",
            ">Members",
            "Vote",
            ">Accuracy",
            ">95 % interval",
            ">Difference",
            ">95 % interval of it",
            ">p",
            ">Adjusted p",
        ],
        rows=[_contender_row(one) for one in comparison.contenders],
        notes=notes,
    )
    records = [_contender_record(one) for one in comparison.contenders]
    payload = {"split": comparison.split, "cochran_q": asdict(comparison.agreement), "ensembles": records}
    flat = [{**record, "members": len(record["members"])} for record in records]
    return Document([sheet], payload, flat)


def _contender_row(one: Contender) -> list[str]:
    report, test = one.evaluation.report, one.against_first
    low, high = report.interval
    cells = [
        one.name,
        str(len(one.members)),
        one.rule.vote,
        percent(report.accuracy),
        f"{percent(low)} to {percent(high)}",
    ]
    if test is None:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{100 * test.difference:+.2f}",
        f"{100 * test.interval[0]:+.2f} to {100 * test.interval[1]:+.2f}",
        f"{test.p_value:.2g}",
        f"{one.adjusted_p_value:.2g}",
    ]


def _contender_record(one: Contender) -> dict[str, Any]:
    report, test = one.evaluation.report, one.against_first
    return {
        "ensemble": one.name,
        "members": list(one.members),
        "vote": one.rule.vote,
        "accuracy": report.accuracy,
        "accuracy_low": report.interval[0],
        "accuracy_high": report.interval[1],
        "macro_f1": report.macro.f1,
        "loss": one.evaluation.calibration.loss,
        "difference": None if test is None else test.difference,
        "difference_low": None if test is None else test.interval[0],
        "difference_high": None if test is None else test.interval[1],
        "p_value": None if test is None else test.p_value,
        "adjusted_p_value": one.adjusted_p_value,
    }


# --- compare --draws --------------------------------------------------------------------------------------


def study_document(study: CompositionStudy, rule: Combiner) -> Document:
    """Return whether ensembles of different kinds of members vote better than ensembles of one kind."""
    pool = ", ".join(f"{count} of {group}" for group, count in study.n_members.items())
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {study.size} on {study.split}, drawn from {pool}",
        columns=[
            "Members",
            ">Ensembles",
            ">Accuracy",
            ">± draws",
            ">One alone",
            ">Mixed gains",
            ">95 % interval of it",
        ],
        rows=[
            [*_composition_cells(study.mixed), "", "", ""],
            *(
                [*_composition_cells(one), percent(study.alone[one.groups[0]]), *_gain_cells(gain, interval)]
                for one, gain, interval in zip(study.same, study.gains, study.intervals, strict=True)
            ),
        ],
        notes=_study_in_words(study),
    )
    records = [
        {
            "members": "+".join(one.groups),
            "ensembles": len(one.accuracies),
            "accuracy": one.mean,
            "spread": one.spread,
            "mixed_gains": gain,
            "gain_low": interval[0],
            "gain_high": interval[1],
        }
        for one, gain, interval in zip(
            (study.mixed, *study.same), (None, *study.gains), ((None, None), *study.intervals), strict=True
        )
    ]
    payload = {
        "split": study.split,
        "vote": rule.vote,
        "size": study.size,
        "pool": study.n_members,
        "alone": study.alone,
        "compositions": records,
    }
    return Document([sheet], payload, records)


def _composition_cells(one: Composition) -> list[str]:
    return ["+".join(one.groups), str(len(one.accuracies)), percent(one.mean), f"{100 * one.spread:.2f}"]


def _gain_cells(gain: float, interval: tuple[float, float]) -> list[str]:
    return [f"{100 * gain:+.2f}", f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"]


def _study_in_words(study: CompositionStudy) -> list[str]:
    lines = []
    for one, gain, (low, high) in zip(study.same, study.gains, study.intervals, strict=True):
        verdict = "a real gain" if low > 0 else "a real loss" if high < 0 else "chance alone could explain it"
        lines.append(
            f"Different kinds vote {100 * abs(gain):.2f} points {'better' if gain >= 0 else 'worse'} than "
            f"{study.size} of {one.groups[0]} (95 % interval {100 * low:+.2f} to {100 * high:+.2f}): {verdict}."
        )
    return [*lines, "The intervals are over the members that might have been trained, on these images."]


# --- fit, select, pack ------------------------------------------------------------------------------------


def selection_document(
    names: tuple[str, ...], rule: Combiner, selection: Selection, considered: int, images: int, output: Path
) -> Document:
    """Return who was chosen, and what comes next."""
    records = [
        {"member": name, "count": count, "weight": count / sum(selection.counts)}
        for name, count in zip(names, selection.counts, strict=True)
    ]
    sheet = Sheet(
        title=f"Chosen from {considered} members on {images:,} validation images, for a {rule.vote} vote",
        columns=["Member", ">Times", ">Weight"],
        rows=[[str(row["member"]), str(row["count"]), f"{row['weight']:.3f}"] for row in records],
        notes=_next_steps(output),
    )
    payload = {
        "ensemble": str(output),
        "vote": rule.vote,
        "temperature": rule.temperature,
        "score": selection.score,
        "considered": considered,
        "members": records,
    }
    return Document([sheet], payload, records)


def fit_document(names: tuple[str, ...], rule: Combiner, accuracy: float | None, output: Path) -> Document:
    """Return what was learnt, and what comes next."""
    weights = rule.weights or (1.0,) * len(names)
    total = sum(weights)
    records = [{"member": name, "weight": weight / total} for name, weight in zip(names, weights, strict=True)]
    learnt = (
        "Nothing was learnt: there are no validation images."
        if accuracy is None
        else f"Validation accuracy {percent(accuracy)} %; temperature {rule.temperature:.3f}."
    )
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {len(names)}",
        columns=["Member", ">Weight"],
        rows=[[str(row["member"]), f"{row['weight']:.3f}"] for row in records],
        notes=[learnt, *_next_steps(output)],
    )
    payload = {
        "ensemble": str(output),
        "vote": rule.vote,
        "temperature": rule.temperature,
        "validation_accuracy": accuracy,
        "members": records,
    }
    return Document([sheet], payload, records)


def _next_steps(output: Path) -> list[str]:
    return [f"Ensemble: {output}", f"Next: fmcli ensemble evaluate {shlex.quote(str(output))}"]
