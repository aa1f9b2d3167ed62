"""The result of `fmcli ensemble evaluate`: a vote compared with its members."""

import math
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Combiner, EnsembleEvaluation, Evaluation
from fmcli.metrics.calibration import Calibration
from fmcli.metrics.comparison import PairedTest
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.evaluation import (
    brief_payload,
    evaluation_payload,
    evaluation_records,
    evaluation_sheets,
    published_accuracy,
)

SIGNIFICANCE_LEVEL = 0.05
_MAX_MEMBERS_IN_FULL = 100  # in larger ensembles, JSON contains neither the classes of each member nor the pairs
_MEAN_PROBABILITY = "the mean of its members' probabilities"
_PROBABILITIES = {
    "soft": _MEAN_PROBABILITY,
    "weighted-soft": "the weighted mean of its members' probabilities",
    "geometric": "the geometric mean of its members' probabilities",
    "stacking": "the output of the fitted stacking model",
}


def ensemble_document(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> Document:
    """Return the scores of a vote next to the scores of its members, then those for each class.

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
    rule, members = evaluation.rule, evaluation.members
    weights = [f"{weight:.3g}" for weight in rule.weights] if rule.weights else []
    groups = list(rule.groups) if rule.vote == "two-level" else []
    has_contributions = any(value is not None for value in evaluation.contributions)
    columns = ["Member", ">Accuracy", ">95 % interval", ">Macro F1", ">Loss", ">Calib. err."]
    extra = [
        *([("Group", [*groups, ""])] if groups else []),
        *([(">Weight", [*weights, ""])] if weights else []),
        *([(">Contribution", [*map(_format_points, evaluation.contributions), ""])] if has_contributions else []),
    ]
    rows = [
        [*_member_row(member), *(cells[index] for _, cells in extra)]
        for index, member in enumerate([*members, evaluation.vote])
    ]
    return Sheet(
        title=f"{describe_rule(rule)} of {len(members)} on {evaluation.split}",
        columns=[*columns, *(header for header, _ in extra)],
        rows=rows,
        summary=1,
        emphasis=len(rows) - 1,
        notes=_member_notes(evaluation) if len(members) > 1 else ["There is only one member, so there is no vote."],
    )


def _member_notes(evaluation: EnsembleEvaluation) -> list[str]:
    rule, diversity, test = evaluation.rule, evaluation.diversity, evaluation.agreement
    notes = [describe_gain(evaluation.gain, "The vote", f"its best member, {evaluation.best_member}")]
    if test is not None:
        verdict = "differ in accuracy" if test.p_value < SIGNIFICANCE_LEVEL else "show no difference in accuracy"
        notes.append(f"The members {verdict} (p = {test.p_value:.2g}, Cochran's Q = {test.statistic:.1f}).")
    notes += [
        f"On average, two members disagree on {percent(diversity.mean_disagreement)} % of the images and are both "
        f"wrong on {percent(diversity.mean_double_fault)} %; Q statistic {_format_number(diversity.mean_q_statistic)}, "
        f"Cohen's kappa {_format_number(diversity.mean_kappa)}.",
        f"Ties: {evaluation.n_ties:,} (decided by {rule.tie}).",
    ]
    if any(value is not None for value in evaluation.contributions):
        kept = " and the others keep their weights" if rule.weights else ""
        notes.append(f"Contribution: points the vote loses if this member is removed{kept} (negative: it gets better).")
    if evaluation.cross_fitted:
        notes.append("The rule was fitted to these images, in five folds.")
    return notes


def describe_rule(rule: Combiner) -> str:
    """Return the start of a title, such as `Weighted majority vote`."""
    name = rule.vote if rule.weights is None or rule.vote.startswith("weighted-") else f"weighted {rule.vote}"
    return f"{name.capitalize()} vote"


def _member_row(member: Evaluation) -> list[str]:
    low, high = member.report.interval
    return [
        member.name,
        percent(member.report.accuracy),
        f"{percent(low)} to {percent(high)}",
        percent(member.report.macro.f1),
        f"{member.calibration.loss:.4f}",
        percent(member.calibration.ece),
    ]


def _format_points(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:+.2f}"


def describe_gain(gain: PairedTest, first: str, second: str, adjusted_p_value: float | None = None) -> str:
    """Return a sentence on whether one classifier is more accurate than another.

    Args:
        gain: Test of the first classifier against the second.
        first: Name of the first classifier, capitalised for the start of a sentence.
        second: Name of the second classifier.
        adjusted_p_value: The p-value corrected for the number of tests. Default: the p-value of this test.
    """
    if gain.only_first == gain.only_second:
        return f"{first} is as accurate as {second}."
    direction = "above" if gain.difference > 0 else "below"
    low, high = gain.interval if gain.difference > 0 else (-gain.interval[1], -gain.interval[0])
    p_value = gain.p_value if adjusted_p_value is None else adjusted_p_value
    adjusted = "" if p_value == gain.p_value else ", adjusted"
    return (
        f"{first} is {abs(100 * gain.difference):.2f} points {direction} {second} (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}; p = {p_value:.2g}, McNemar's exact test{adjusted}): {_verdict(gain, low, p_value)}."
    )


def _verdict(gain: PairedTest, low: float, p_value: float) -> str:
    """Return whether a difference is significant; `low` is the lower end of its interval."""
    if (gain.p_value < SIGNIFICANCE_LEVEL) != (low > 0):
        return "borderline: the interval and the test disagree"
    return "a real difference" if p_value < SIGNIFICANCE_LEVEL else "chance alone could explain it"


def _nan_to_none(value: float) -> float | None:
    """Return None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value


def _format_number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def _calibration_sheet(evaluation: EnsembleEvaluation) -> Sheet:
    """Return the calibration of the vote's probabilities before and after temperature scaling."""
    rule = evaluation.rule
    probability = _PROBABILITIES.get(rule.vote, f"{_MEAN_PROBABILITY}; it did not decide the vote")
    rows = [["before scaling", *_calibration_cells(evaluation.vote.calibration)]]
    notes = [
        f"The vote's probability is {probability}.",
        "Calib. err. uses bins of equal width; Equal mass uses bins with the same number of images.",
    ]
    if evaluation.calibrated is not None:
        rows.append([f"at temperature {rule.temperature:.2f}", *_calibration_cells(evaluation.calibrated)])
        notes.append("The temperature was fitted to validation images. Ensemble files and packs store it.")
    return Sheet(
        title="Calibration of the vote's probabilities",
        columns=["Probabilities", ">Loss", ">Brier", ">Calib. err.", ">Equal mass"],
        rows=rows,
        notes=notes,
    )


def _calibration_cells(calibration: Calibration) -> list[str]:
    scores = [f"{calibration.loss:.4f}", f"{calibration.brier:.4f}"]
    return [*scores, percent(calibration.ece), percent(calibration.ece_equal_mass)]


def _payload(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> dict[str, Any]:
    rule = evaluation.rule
    diversity = evaluation.diversity
    in_full = len(evaluation.members) <= _MAX_MEMBERS_IN_FULL
    return {
        "split": evaluation.split,
        "vote": rule.vote,
        "tie": rule.tie,
        "weights": None if rule.weights is None else list(rule.weights),
        "groups": list(rule.groups) if rule.vote == "two-level" else None,
        "temperature": rule.temperature,
        "cross_fitted": evaluation.cross_fitted,
        "ties": evaluation.n_ties,
        "best_member": evaluation.best_member,
        "gain_over_best_member": asdict(evaluation.gain),
        "cochran_q": None if evaluation.agreement is None else asdict(evaluation.agreement),
        "pairwise_disagreement": diversity.mean_disagreement,
        "diversity": {
            name: {
                "mean": _nan_to_none(getattr(diversity, f"mean_{name}")),
                "pairs": [[_nan_to_none(value) for value in row] for row in getattr(diversity, name).tolist()]
                if in_full
                else None,
            }
            for name in ("disagreement", "q_statistic", "double_fault", "kappa")
        },
        "published_accuracy": published_accuracy(reference, evaluation.split),
        "ensemble": {
            **evaluation_payload(evaluation.vote),
            "calibrated": None if evaluation.calibrated is None else asdict(evaluation.calibrated),
        },
        "members": [
            {**(evaluation_payload(member) if in_full else brief_payload(member)), "lost_without": contribution}
            for member, contribution in zip(evaluation.members, evaluation.contributions, strict=True)
        ],
    }
