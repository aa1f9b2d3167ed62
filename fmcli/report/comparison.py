"""The result of `fmcli ensemble compare`."""

from dataclasses import asdict
from typing import Any

from fmcli.ensemble import VotingRule
from fmcli.ensemble.comparison import ComparedEnsemble, Comparison
from fmcli.ensemble.heterogeneity import HeterogeneityStudy, HomogeneousResult
from fmcli.report.document import Document, Record, interval, percent, points, show_p_value
from fmcli.report.ensemble_evaluation import (
    describe_agreement,
    describe_gain,
    describe_rule,
    describe_significance,
)
from fmcli.report.sheet import Row, Sheet

_HOLM = "Adjusted p: corrected for the number of tests by Holm's method."


# --- ensembles --------------------------------------------------------------------------------------------


def comparison_document(comparison: Comparison) -> Document:
    """Return the accuracy of several ensembles, each compared with the first."""
    first, *others = comparison.ensembles
    records = [_ensemble_record(ensemble) for ensemble in comparison.ensembles]
    notes = [
        *describe_agreement("The ensembles", comparison.agreement),
        *(
            describe_gain(other.against_first, other.name, first.name, other.adjusted_p_value)
            for other in others
            if other.against_first is not None
        ),
        *(f"{one} and {other} have the same members: their logits are equal." for one, other in comparison.duplicates),
    ]
    sheet = Sheet(
        title=f"{len(records)} ensembles on {comparison.split}, each compared with {first.name}",
        rows=[_ensemble_row(record) for record in records],
        notes=[*notes, _HOLM] if len(others) > 1 else notes,
    )
    payload = {
        "split": comparison.split,
        "cochran_q": comparison.agreement and asdict(comparison.agreement),
        "ensembles": records,
    }
    return Document([sheet], payload, records)


def _ensemble_record(ensemble: ComparedEnsemble) -> dict[str, Any]:
    report, test = ensemble.evaluation.report, ensemble.against_first
    return {
        "ensemble": ensemble.name,
        "n_members": len(ensemble.members),
        "members": list(ensemble.members),
        "vote": ensemble.rule.name,
        "accuracy": report.accuracy,
        "accuracy_low": report.interval[0],
        "accuracy_high": report.interval[1],
        "macro_f1": report.macro.f1,
        "loss": ensemble.evaluation.calibration.loss,
        "difference": test and test.difference,
        "difference_low": test and test.interval[0],
        "difference_high": test and test.interval[1],
        "p_value": test and test.p_value,
        "adjusted_p_value": ensemble.adjusted_p_value,
    }


def _ensemble_row(record: Record) -> Row:
    return {
        "Ensemble": record["ensemble"],
        ">Members": record["n_members"],
        "Vote": record["vote"],
        ">Accuracy": percent(record["accuracy"]),
        ">95 % interval": interval(record["accuracy_low"], record["accuracy_high"]),
        ">Difference": points(record["difference"]),
        ">Its 95 % interval": interval(record["difference_low"], record["difference_high"], points),
        ">p": show_p_value(record["p_value"]),
        ">Adjusted p": show_p_value(record["adjusted_p_value"]),
    }


# --- heterogeneous and homogeneous ensembles --------------------------------------------------------------


def study_document(study: HeterogeneityStudy, rule: VotingRule) -> Document:
    """Return the accuracy of heterogeneous ensembles compared with homogeneous ensembles."""
    pool = ", ".join(f"{n_members} of group {group}" for group, n_members in study.n_members.items())
    records = [_drawn_record(study, None), *(_drawn_record(study, result) for result in study.homogeneous)]
    alone = {result.group: result.member_accuracy for result in study.homogeneous}
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {study.size} members on {study.split}, drawn from {pool}",
        rows=[_drawn_row(*pair) for pair in zip(records, [None, *alone.values()], strict=True)],
        notes=[
            *(_describe_study_gain(study.heterogeneous.name, result) for result in study.homogeneous),
            _HOLM,
            "Intervals and tests treat both the members and the images as random samples.",
        ],
    )
    payload = {
        "split": study.split,
        "vote": rule.name,
        "size": study.size,
        "pool": study.n_members,
        "alone": alone,
        "compositions": records,
    }
    return Document([sheet], payload, records)


def _drawn_record(study: HeterogeneityStudy, result: HomogeneousResult | None) -> dict[str, Any]:
    """Return the record of one group's ensembles, or of the heterogeneous ensembles if `result` is None."""
    ensembles = result.ensembles if result else study.heterogeneous
    return {
        "composition": ensembles.name,
        "n_members": study.size,
        "ensembles": len(ensembles.accuracies),
        "accuracy": ensembles.mean,
        "spread": ensembles.spread,
        "mixed_gains": result and result.gain,
        "gain_low": result and result.test.interval[0],
        "gain_high": result and result.test.interval[1],
        "p_value": result and result.test.p_value,
        "adjusted_p_value": result and result.adjusted_p_value,
    }


def _drawn_row(record: Record, member_accuracy: float | None) -> Row:
    return {
        "Members": record["composition"],
        ">Ensembles": record["ensembles"],
        ">Accuracy": percent(record["accuracy"]),
        ">± draws": percent(record["spread"]),
        ">Single member": percent(member_accuracy),
        ">Gain of mixed": points(record["mixed_gains"]),
        ">Its 95 % interval": interval(record["gain_low"], record["gain_high"], points),
        ">Adjusted p": show_p_value(record["adjusted_p_value"]),
    }


def _describe_study_gain(mixed: str, result: HomogeneousResult) -> str:
    """Return a sentence that says whether mixed ensembles are more accurate than the ensembles of one group."""
    size, uniform = f"{100 * abs(result.gain):.2f}", result.ensembles.name
    if size == "0.00":
        return f"On average, {mixed} is as accurate as {uniform}."
    direction = "more" if result.gain > 0 else "less"
    return (
        f"On average, {mixed} is {size} points {direction} accurate than {uniform} (95 % interval "
        f"{interval(*result.test.interval, points)}; adjusted p {show_p_value(result.adjusted_p_value, '= ')}): "
        f"{describe_significance(result.adjusted_p_value)}."
    )
