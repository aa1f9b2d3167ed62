"""Votes beside their members, as documents."""

import math
from dataclasses import asdict
from typing import Any

from fmcli.ensemble import Combiner, EnsembleEvaluation, Evaluation
from fmcli.metrics import Calibration, PairedTest, PairwiseDiversity
from fmcli.recipe import ReferenceSpec
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.evaluation import class_records, evaluation_payload, evaluation_sheets, published_accuracy

_SURE = 0.05  # p-values below this are called real
_MOST_IN_FULL = 100  # members whose every class and every pair JSON lists
_PROBABILITIES = {
    "soft": "its members' mean probability",
    "weighted-soft": "its members' weighted mean probability",
    "geometric": "its members' geometric mean probability",
    "stacking": "what it learnt",
}
_LOST_WITHOUT = {
    False: "Lost without: points that the vote would lose without that member; below 0, it is better without.",
    True: "Lost without: points that the vote would lose without that member, the others keeping their weights.",
}
_OF_COUNTS = "its members' mean probability, which did not decide"


def ensemble_document(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> Document:
    """Return the vote beside each member, then the vote class by class.

    Args:
        evaluation: The vote and its members.
        reference: Published figures of the whole, if any.
    """
    sheets = [
        _member_sheet(evaluation),
        _calibration_sheet(evaluation),
        *evaluation_sheets(evaluation.vote, evaluation.split, reference),
    ]
    everyone = [*evaluation.members, evaluation.vote]
    records = [
        {"member": one.name, "accuracy": one.report.accuracy, **row}
        for one in everyone
        for row in class_records(one.report)
    ]
    return Document(sheets, _payload(evaluation, reference), records)


def _member_sheet(evaluation: EnsembleEvaluation) -> Sheet:
    rule, members = evaluation.rule, evaluation.members
    weights = [f"{weight:.3g}" for weight in rule.weights] if rule.weights else []
    groups = list(rule.groups) if rule.vote == "two-level" else []
    known = any(loss is not None for loss in evaluation.contributions)
    columns = ["Member", ">Accuracy", ">95 % interval", ">Macro F1", ">Loss", ">Calib. err."]
    extra = [
        *([("Group", [*groups, ""])] if groups else []),
        *([(">Weight", [*weights, ""])] if weights else []),
        *([(">Lost without", [*map(_show_loss, evaluation.contributions), ""])] if known else []),
    ]
    rows = [
        [*_member_row(one), *(cells[place] for _, cells in extra)]
        for place, one in enumerate([*members, evaluation.vote])
    ]
    return Sheet(
        title=f"{describe_rule(rule)} of {len(members)} on {evaluation.split}",
        columns=[*columns, *(heading for heading, _ in extra)],
        rows=rows,
        summary=1,
        emphasis=len(rows) - 1,
        notes=["There is one member, and nothing to vote on."]
        if len(members) == 1
        else [
            gain_in_words(evaluation.gain, "The vote", f"its best member, {evaluation.best_member}"),
            *_agreement_in_words(evaluation),
            *_diversity_in_words(evaluation.diversity, len(members)),
            f"Ties: {evaluation.n_ties:,} (decided by {rule.tie}).",
            *([_LOST_WITHOUT[bool(rule.weights)]] if known else []),
            *(["What the rule learnt was learnt on these images, in five folds."] if evaluation.cross_fitted else []),
        ],
    )


def describe_rule(rule: Combiner) -> str:
    """Return a rule's name as a title begins."""
    name = rule.vote if rule.weights is None or rule.vote.startswith("weighted-") else f"weighted {rule.vote}"
    return f"{name.capitalize()} vote"


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


def _show_loss(loss: float | None) -> str:
    return "" if loss is None else f"{100 * loss:+.2f}"


def gain_in_words(gain: PairedTest, first: str, second: str, adjusted_p_value: float | None = None) -> str:
    """Say whether one classifier is better than another.

    Args:
        gain: The first against the second.
        first: What to call it, as a sentence begins.
        second: What to call it.
        adjusted_p_value: The p-value to judge by, where it is one of several tests.
    """
    if gain.only_first == gain.only_second:
        return f"{first} is as accurate as {second}."
    way = "above" if gain.difference > 0 else "below"
    low, high = gain.interval if gain.difference > 0 else (-gain.interval[1], -gain.interval[0])
    p_value = gain.p_value if adjusted_p_value is None else adjusted_p_value
    adjusted = "" if p_value == gain.p_value else ", adjusted"
    return (
        f"{first} is {abs(100 * gain.difference):.2f} points {way} {second} (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}; p = {p_value:.2g}, McNemar's exact test{adjusted}): {_verdict(gain, low, p_value)}."
    )


def _verdict(gain: PairedTest, low: float, p_value: float) -> str:
    """Say whether a difference whose interval begins at `low` is real."""
    if (gain.p_value < _SURE) != (low > 0):
        return "borderline: the interval and the test disagree"
    return "a real difference" if p_value < _SURE else "chance alone could explain it"


def _agreement_in_words(evaluation: EnsembleEvaluation) -> list[str]:
    test = evaluation.agreement
    if test is None or len(evaluation.members) < 2:
        return []
    verdict = "differ in accuracy" if test.p_value < _SURE else "show no difference in accuracy"
    return [f"The members {verdict} (p = {test.p_value:.2g}, Cochran's Q = {test.statistic:.1f})."]


def _diversity_in_words(diversity: PairwiseDiversity, n_members: int) -> list[str]:
    if n_members < 2:
        return []
    return [
        f"Two members, on average: they disagree on {percent(diversity.mean_disagreement)} % of the images and are "
        f"both wrong on {percent(diversity.mean_double_fault)} %; Q statistic {_number(diversity.mean_q_statistic)}, "
        f"Cohen's kappa {_number(diversity.mean_kappa)}."
    ]


def _brief(member: Evaluation) -> dict[str, Any]:
    report = member.report
    return {
        "name": member.name,
        "accuracy": report.accuracy,
        "accuracy_interval": list(report.interval),
        **asdict(member.calibration),
    }


def _finite(value: float) -> float | None:
    """Return a number as JSON can have it."""
    return None if math.isnan(value) else value


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.2f}"


def _calibration_sheet(evaluation: EnsembleEvaluation) -> Sheet:
    """Return how far the vote's probabilities can be trusted, before and after temperature scaling."""
    rule = evaluation.rule
    what = _PROBABILITIES.get(rule.vote, _OF_COUNTS)
    rows = [["as combined", *_calibration_cells(evaluation.vote.calibration)]]
    notes = [f"The vote's probability is {what}."]
    if evaluation.calibrated is not None:
        rows.append([f"at temperature {rule.temperature:.2f}", *_calibration_cells(evaluation.calibrated)])
        notes.append("The temperature is learnt on validation images; ensemble files and packs keep it.")
    return Sheet(
        title="Can the vote's probabilities be trusted?",
        columns=["Probabilities", ">Loss", ">Brier", ">Calib. err.", ">Equal mass"],
        rows=rows,
        notes=notes,
    )


def _calibration_cells(trust: Calibration) -> list[str]:
    return [f"{trust.loss:.4f}", f"{trust.brier:.4f}", percent(trust.ece), percent(trust.ece_equal_mass)]


def _payload(evaluation: EnsembleEvaluation, reference: ReferenceSpec | None) -> dict[str, Any]:
    rule = evaluation.rule
    diversity = evaluation.diversity
    in_full = len(evaluation.members) <= _MOST_IN_FULL
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
                "mean": _finite(getattr(diversity, f"mean_{name}")),
                "pairs": [[_finite(value) for value in row] for row in getattr(diversity, name).tolist()]
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
            {**(evaluation_payload(member) if in_full else _brief(member)), "lost_without": loss}
            for member, loss in zip(evaluation.members, evaluation.contributions, strict=True)
        ],
    }
