"""The result of `fmcli ensemble compare`."""

from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Combiner
from fmcli.ensemble.comparison import ComparedEnsemble, Comparison
from fmcli.ensemble.heterogeneity import DrawnEnsembles, HeterogeneityStudy, HomogeneousResult
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.ensemble_evaluation import SIGNIFICANCE_LEVEL, describe_gain, describe_rule

# --- ensembles --------------------------------------------------------------------------------------------


def comparison_document(comparison: Comparison) -> Document:
    """Return the accuracy of several ensembles, each compared with the first."""
    first, *others = comparison.ensembles
    agreement = comparison.agreement
    notes = []
    if agreement is not None:
        verdict = "differ" if agreement.p_value < SIGNIFICANCE_LEVEL else "show no difference"
        notes.append(f"All ensembles together {verdict} in accuracy (p = {agreement.p_value:.2g}, Cochran's Q).")
    notes += [
        describe_gain(other.against_first, other.name, first.name, other.adjusted_p_value)
        for other in others
        if other.against_first is not None
    ]
    notes += [
        f"{one} and {other} are the same members: their logits are equal." for one, other in comparison.duplicates
    ]
    if len(others) > 1:
        notes.append("Adjusted p: corrected for the number of tests by Holm's method.")
    sheet = Sheet(
        title=f"{len(comparison.ensembles)} ensembles on {comparison.split}, each compared with {first.name}",
        columns=["Ensemble", ">Members", "Vote", ">Accuracy", ">95 % interval", ">Difference", ">Its 95 % interval",
                 ">p", ">Adjusted p"],
        rows=[_ensemble_row(ensemble) for ensemble in comparison.ensembles],
        notes=notes,
    )  # fmt: skip
    records = [_ensemble_record(ensemble) for ensemble in comparison.ensembles]
    payload = {
        "split": comparison.split,
        "cochran_q": None if agreement is None else asdict(agreement),
        "ensembles": records,
    }
    return Document([sheet], payload, records)


def _ensemble_row(ensemble: ComparedEnsemble) -> list[str]:
    report, test = ensemble.evaluation.report, ensemble.against_first
    low, high = report.interval
    cells = [
        ensemble.name,
        str(len(ensemble.members)),
        ensemble.rule.vote,
        percent(report.accuracy),
        f"{percent(low)} to {percent(high)}",
    ]
    if test is None:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{100 * test.difference:+.2f}",
        _format_interval(test.interval),
        f"{test.p_value:.2g}",
        f"{ensemble.adjusted_p_value:.2g}",
    ]


def _format_interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def _ensemble_record(ensemble: ComparedEnsemble) -> dict[str, Any]:
    report, test = ensemble.evaluation.report, ensemble.against_first
    return {
        "ensemble": ensemble.name,
        "n_members": len(ensemble.members),
        "members": list(ensemble.members),
        "vote": ensemble.rule.vote,
        "accuracy": report.accuracy,
        "accuracy_low": report.interval[0],
        "accuracy_high": report.interval[1],
        "macro_f1": report.macro.f1,
        "loss": ensemble.evaluation.calibration.loss,
        "difference": None if test is None else test.difference,
        "difference_low": None if test is None else test.interval[0],
        "difference_high": None if test is None else test.interval[1],
        "p_value": None if test is None else test.p_value,
        "adjusted_p_value": ensemble.adjusted_p_value,
    }


# --- heterogeneous and homogeneous ensembles --------------------------------------------------------------


def study_document(study: HeterogeneityStudy, rule: Combiner) -> Document:
    """Return the accuracy of heterogeneous ensembles compared with that of homogeneous ensembles."""
    pool = ", ".join(f"{count} of {group}" for group, count in study.n_members.items())
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {study.size} on {study.split}, drawn from {pool}",
        columns=["Members", ">Ensembles", ">Accuracy", ">± draws", ">Single member", ">Gain of mixed",
                 ">Its 95 % interval", ">Adjusted p"],
        rows=[
            [*_drawn_cells(study.heterogeneous), "", "", "", ""],
            *(_homogeneous_row(result) for result in study.homogeneous),
        ],
        notes=_study_notes(study),
    )  # fmt: skip
    records = [
        _drawn_record(study, study.heterogeneous, None),
        *(_drawn_record(study, result.ensembles, result) for result in study.homogeneous),
    ]
    payload = {
        "split": study.split,
        "vote": rule.vote,
        "size": study.size,
        "pool": study.n_members,
        "alone": {result.group: result.member_accuracy for result in study.homogeneous},
        "compositions": records,
    }
    return Document([sheet], payload, records)


def _drawn_record(
    study: HeterogeneityStudy, ensembles: DrawnEnsembles, result: HomogeneousResult | None
) -> dict[str, Any]:
    return {
        "composition": ensembles.name,
        "n_members": study.size,
        "ensembles": len(ensembles.accuracies),
        "accuracy": ensembles.mean,
        "spread": ensembles.spread,
        "mixed_gains": result.gain if result else None,
        "gain_low": result.test.interval[0] if result else None,
        "gain_high": result.test.interval[1] if result else None,
        "p_value": result.test.p_value if result else None,
        "adjusted_p_value": result.adjusted_p_value if result else None,
    }


def _drawn_cells(ensembles: DrawnEnsembles) -> list[str]:
    return [ensembles.name, str(len(ensembles.accuracies)), percent(ensembles.mean), f"{100 * ensembles.spread:.2f}"]


def _homogeneous_row(result: HomogeneousResult) -> list[str]:
    return [
        *_drawn_cells(result.ensembles),
        percent(result.member_accuracy),
        f"{100 * result.gain:+.2f}",
        _format_interval(result.test.interval),
        f"{result.adjusted_p_value:.2g}",
    ]


def _study_notes(study: HeterogeneityStudy) -> list[str]:
    groups, size = ", ".join(study.n_members), _spell(study.size)
    if study.size == len(study.n_members):
        mixed, votes = f"One of each of {groups}", "votes"
    else:
        mixed, votes = f"{size.capitalize()} different ones of {groups}", "vote"
    notes = []
    for result in study.homogeneous:
        points = f"{100 * abs(result.gain):.2f}"
        how = f"{points} points {'better' if result.gain > 0 else 'worse'} than" if float(points) else "as well as"
        notes.append(
            f"{mixed} {votes} {how} {size} of {result.group} (95 % interval {_format_interval(result.test.interval)}; "
            f"p = {result.adjusted_p_value:.2g}, adjusted): {_study_verdict(result)}."
        )
    if len(notes) > 1:
        notes.append("Adjusted p: corrected for the number of tests by Holm's method.")
    return [*notes, "Intervals and tests treat both the members and the images as random samples."]


def _study_verdict(result: HomogeneousResult) -> str:
    if result.adjusted_p_value >= SIGNIFICANCE_LEVEL:
        return "chance alone could explain it" if f"{100 * abs(result.gain):.2f}" != "0.00" else "no difference"
    return "a real gain" if result.gain > 0 else "a real loss"


def _spell(number: int) -> str:
    words = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number - 2] if 2 <= number < 2 + len(words) else str(number)
