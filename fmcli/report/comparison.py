"""Ensembles that were compared, fitted, selected or averaged, as documents."""

from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Combiner
from fmcli.ensemble.comparison import ComparedEnsemble, Comparison
from fmcli.ensemble.heterogeneity import DrawnEnsembles, HeterogeneityStudy, HomogeneousResult
from fmcli.metrics import CochranTest
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.ensemble_evaluation import describe_rule, gain_in_words

_SURE = 0.05  # p-values below this are called real


# --- compare ----------------------------------------------------------------------------------------------


def comparison_document(comparison: Comparison) -> Document:
    """Return ensembles side by side, each against the first."""
    first, *others = comparison.ensembles
    agreement = comparison.agreement
    notes = [
        *([] if agreement is None else [_agreement_in_words(agreement)]),
        *(
            gain_in_words(other.against_first, other.name, first.name, other.adjusted_p_value)
            for other in others
            if other.against_first is not None
        ),
        *(f"{one} and {other} are the same members: their logits are equal." for one, other in comparison.duplicates),
    ]
    if len(others) > 1:
        notes.append("Adjusted p: held against all these tests together, by Holm's method.")
    sheet = Sheet(
        title=f"{len(comparison.ensembles)} ensembles on {comparison.split}, each against {first.name}",
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
        rows=[_ensemble_row(one) for one in comparison.ensembles],
        notes=notes,
    )
    records = [_ensemble_record(one) for one in comparison.ensembles]
    payload = {
        "split": comparison.split,
        "cochran_q": None if agreement is None else asdict(agreement),
        "ensembles": records,
    }
    return Document([sheet], payload, records)


def _agreement_in_words(agreement: CochranTest) -> str:
    real = "differ" if agreement.p_value < _SURE else "do not differ, as far as these images tell"
    return f"All together, they {real} (p = {agreement.p_value:.2g}, Cochran's Q)."


def _ensemble_row(one: ComparedEnsemble) -> list[str]:
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


def _ensemble_record(one: ComparedEnsemble) -> dict[str, Any]:
    report, test = one.evaluation.report, one.against_first
    return {
        "ensemble": one.name,
        "n_members": len(one.members),
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


def study_document(study: HeterogeneityStudy, rule: Combiner) -> Document:
    """Return whether ensembles of different kinds of members vote better than ensembles of one kind."""
    pool = ", ".join(f"{count} of {group}" for group, count in study.n_members.items())
    rivals = study.homogeneous
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
            ">Adjusted p",
        ],
        rows=[
            [*_drawn_cells(study.heterogeneous), "", "", "", ""],
            *([*_drawn_cells(one.ensembles), percent(one.member_accuracy), *_gain_cells(one)] for one in rivals),
        ],
        notes=_study_in_words(study),
    )
    records = [
        _drawn_record(study, study.heterogeneous, None),
        *(_drawn_record(study, one.ensembles, one) for one in rivals),
    ]
    payload = {
        "split": study.split,
        "vote": rule.vote,
        "size": study.size,
        "pool": study.n_members,
        "alone": {one.group: one.member_accuracy for one in rivals},
        "compositions": records,
    }
    return Document([sheet], payload, records)


def _drawn_record(study: HeterogeneityStudy, one: DrawnEnsembles, rival: HomogeneousResult | None) -> dict[str, Any]:
    return {
        "composition": one.name,
        "n_members": study.size,
        "ensembles": len(one.accuracies),
        "accuracy": one.mean,
        "spread": one.spread,
        "mixed_gains": rival.gain if rival else None,
        "gain_low": rival.test.interval[0] if rival else None,
        "gain_high": rival.test.interval[1] if rival else None,
        "p_value": rival.test.p_value if rival else None,
        "adjusted_p_value": rival.adjusted_p_value if rival else None,
    }


def _drawn_cells(one: DrawnEnsembles) -> list[str]:
    return [one.name, str(len(one.accuracies)), percent(one.mean), f"{100 * one.spread:.2f}"]


def _gain_cells(one: HomogeneousResult) -> list[str]:
    low, high = one.test.interval
    return [f"{100 * one.gain:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", f"{one.adjusted_p_value:.2g}"]


def _study_in_words(study: HeterogeneityStudy) -> list[str]:
    groups, size = ", ".join(study.n_members), _in_words(study.size)
    if study.size == len(study.n_members):
        mixed, votes = f"One of each of {groups}", "votes"
    else:
        mixed, votes = f"{size.capitalize()} different ones of {groups}", "vote"
    lines = []
    for one in study.homogeneous:
        low, high = (f"{100 * end:+.2f}" for end in one.test.interval)
        points = f"{100 * abs(one.gain):.2f}"
        way = f"{points} points {'better' if one.gain > 0 else 'worse'} than" if float(points) else "as well as"
        lines.append(
            f"{mixed} {votes} {way} {size} of {one.group} (95 % interval {low} to {high}; p = "
            f"{one.adjusted_p_value:.2g}, adjusted): {_study_verdict(one)}."
        )
    return [
        *lines,
        "The intervals and tests are over the members that might have been trained and the images that might have been "
        "taken.",
        *(["Adjusted p: held against all these tests, by Holm's method."] if len(lines) > 1 else []),
    ]


def _study_verdict(one: HomogeneousResult) -> str:
    if one.adjusted_p_value >= _SURE:
        return "chance alone could explain it" if f"{100 * abs(one.gain):.2f}" != "0.00" else "no difference"
    return "a real gain" if one.gain > 0 else "a real loss"


def _in_words(number: int) -> str:
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number - 2] if 2 <= number < 2 + len(words) else str(number)
