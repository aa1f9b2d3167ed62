"""The result of `fmcli ensemble evaluate`: a vote compared with its members."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fmcli.ensemble import EnsembleEvaluation, Evaluation, VotingRule
from fmcli.metrics.calibration import Calibration
from fmcli.metrics.comparison import CochranTest, PairedTest
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, count, interval, percent, points, show_p_value
from fmcli.report.evaluation import (
    brief_payload,
    evaluation_payload,
    evaluation_records,
    evaluation_sheets,
)
from fmcli.report.sheet import Row, Sheet

_SIGNIFICANCE_LEVEL = 0.05
_MAX_MEMBERS_IN_FULL = 100  # in larger ensembles, JSON contains neither the classes of each member nor the pairs


def ensemble_document(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> Document:
    """Return the scores of a vote next to the scores of its members, then the scores of each class.

    Args:
        evaluation: The vote and its members.
        reference: Published scores of the ensemble, if any.
    """
    sheets = [
        _member_sheet(evaluation),
        _calibration_sheet(evaluation),
        *evaluation_sheets(evaluation.vote, evaluation.split, reference),
    ]
    records = [row for member in (*evaluation.members, evaluation.vote) for row in evaluation_records(member)]
    return Document(sheets, _payload(evaluation, reference), records)


def _member_sheet(evaluation: EnsembleEvaluation) -> Sheet:
    rule, members, contributions = evaluation.combiner.rule, evaluation.members, evaluation.contributions
    rows = [_member_row(member) for member in (*members, evaluation.vote)]
    for index, row in enumerate(rows[:-1]):
        if rule.needs_groups:
            row["Group"] = rule.groups[index]
        if rule.weights:
            row[">Weight"] = f"{rule.weights[index]:.3g}"
        if _has_contributions(evaluation):
            row[">Contribution"] = points(contributions[index])
    return Sheet(
        title=f"{describe_rule(rule)} of {count(len(members), 'member')} on {evaluation.split}",
        rows=rows,
        n_totals=1,
        notes=_member_notes(evaluation) if len(members) > 1 else ["There is only one member, so there is no vote."],
    )


def _has_contributions(evaluation: EnsembleEvaluation) -> bool:
    return any(value is not None for value in evaluation.contributions)


def _member_notes(evaluation: EnsembleEvaluation) -> list[str]:
    rule, diversity = evaluation.combiner.rule, evaluation.diversity
    notes = [
        describe_gain(evaluation.gain, "The vote", f"its best member, {evaluation.best_member}"),
        *describe_agreement("The members", evaluation.agreement),
        f"On average, two members disagree on {percent(diversity.mean_disagreement)} % of the images and are both "
        f"wrong on {percent(diversity.mean_double_fault)} %; Q statistic {_format_number(diversity.mean_q_statistic)}, "
        f"Cohen's kappa {_format_number(diversity.mean_kappa)}.",
        f"{rule.tie_meaning}: {evaluation.n_ties:,}" + (f" (decided by {rule.tie})." if evaluation.n_ties else "."),
    ]
    if _has_contributions(evaluation):
        kept = " and the other members keep their weights" if rule.weights else ""
        notes.append(f"Contribution: points the vote loses if this member is removed{kept} (negative: it gets better).")
    if evaluation.cross_fitted:
        notes.append("The rule was fitted to these images by cross-validation.")
    return notes


def describe_rule(rule: VotingRule) -> str:
    """Return the start of a title, such as `Weighted majority vote`."""
    return f"{rule.label.capitalize()} vote"


def _member_row(member: Evaluation) -> dict[str, str]:
    return {
        "Member": member.name,
        ">Accuracy": percent(member.report.accuracy),
        ">95 % interval": interval(*member.report.interval),
        ">Macro F1": percent(member.report.macro.f1),
        ">Loss": f"{member.calibration.loss:.4f}",
        ">Calib. err.": percent(member.calibration.ece),
    }


def describe_agreement(subject: str, test: CochranTest | None) -> list[str]:
    """Return one sentence that says whether several classifiers differ in accuracy, or none without a test."""
    if test is None:
        return []
    verdict = "differ in accuracy" if test.p_value < _SIGNIFICANCE_LEVEL else "show no difference in accuracy"
    return [f"{subject} {verdict} (p {show_p_value(test.p_value, '= ')}, Cochran's Q = {test.statistic:.1f})."]


def describe_gain(gain: PairedTest, first: str, second: str, adjusted_p_value: float | None = None) -> str:
    """Return a sentence that says whether one classifier is more accurate than another.

    Args:
        gain: Test of the first classifier against the second.
        first: Name of the first classifier, capitalised for the start of a sentence.
        second: Name of the second classifier.
        adjusted_p_value: The p-value corrected for the number of tests. Default: the p-value of this test.
    """
    if gain.only_first == gain.only_second:
        return f"{first} is as accurate as {second}."
    sign, direction = (1, "above") if gain.difference > 0 else (-1, "below")
    low, high = sorted(sign * end for end in gain.interval)
    p_value = gain.p_value if adjusted_p_value is None else adjusted_p_value
    adjusted = "" if p_value == gain.p_value else ", adjusted"
    if (gain.p_value < _SIGNIFICANCE_LEVEL) == (low > 0):
        verdict = describe_significance(p_value)
    else:
        verdict = "borderline: the interval and the test disagree"
    return (
        f"{first} is {percent(sign * gain.difference)} points {direction} {second} (95 % interval "
        f"{interval(low, high)}; p {show_p_value(p_value, '= ')}, McNemar's exact test{adjusted}): {verdict}."
    )


def describe_significance(p_value: float) -> str:
    """Return a phrase that says whether a test found a difference."""
    return "a real difference" if p_value < _SIGNIFICANCE_LEVEL else "chance alone could explain it"


def _calibration_sheet(evaluation: EnsembleEvaluation) -> Sheet:
    """Return the calibration of the vote's probabilities before and after temperature scaling."""
    combiner, rule = evaluation.combiner, evaluation.combiner.rule
    limits = "" if rule.probability_decides else "; it did not decide the vote"
    if limits and rule.tie == "probability" and evaluation.n_ties:
        limits = "; it decided only ties"
    rows = [_calibration_row("before scaling", evaluation.vote.calibration)]
    notes = [
        f"The vote's probability is {rule.probability_meaning}{limits}.",
        "Calib. err. uses bins of equal width; Equal mass uses bins with the same number of images.",
    ]
    if evaluation.calibrated is not None:
        rows.append(_calibration_row(f"at temperature {combiner.temperature:.2f}", evaluation.calibrated))
        notes.append("The temperature was fitted to validation images. Ensemble files and packs store it.")
    return Sheet("Calibration of the vote's probabilities", rows, notes=notes)


def _calibration_row(name: str, calibration: Calibration) -> Row:
    return {
        "Probabilities": name,
        ">Loss": f"{calibration.loss:.4f}",
        ">Brier": f"{calibration.brier:.4f}",
        ">Calib. err.": percent(calibration.ece),
        ">Equal mass": percent(calibration.ece_equal_mass),
    }


def _payload(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> dict[str, Any]:
    combiner, diversity = evaluation.combiner, evaluation.diversity
    rule = combiner.rule
    in_full = len(evaluation.members) <= _MAX_MEMBERS_IN_FULL
    return {
        "split": evaluation.split,
        "vote": rule.name,
        "tie": rule.tie,
        "weights": rule.weights,
        "groups": rule.groups if rule.needs_groups else None,
        "temperature": combiner.temperature,
        "cross_fitted": evaluation.cross_fitted,
        "ties": evaluation.n_ties,
        "best_member": evaluation.best_member,
        "gain_over_best_member": asdict(evaluation.gain),
        "cochran_q": evaluation.agreement and asdict(evaluation.agreement),
        "pairwise_disagreement": diversity.mean_disagreement,
        "diversity": {
            name: {
                "mean": _nan_to_none(getattr(diversity, f"mean_{name}")),
                "pairs": _nan_to_none(getattr(diversity, name)) if in_full else None,
            }
            for name in ("disagreement", "q_statistic", "double_fault", "kappa")
        },
        "published_accuracy": reference and reference.accuracy_on(evaluation.split),
        "ensemble": {
            **evaluation_payload(evaluation.vote),
            "calibrated": evaluation.calibrated and asdict(evaluation.calibrated),
        },
        "members": [
            {**(evaluation_payload(member) if in_full else brief_payload(member)), "lost_without": contribution}
            for member, contribution in zip(evaluation.members, evaluation.contributions, strict=True)
        ],
    }


def _nan_to_none(values: ArrayLike) -> Any:
    """Return a number or an array as JSON values, with null instead of NaN, which JSON does not have."""
    return np.where(np.isnan(values), np.array(None), values).tolist()


def _format_number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"
