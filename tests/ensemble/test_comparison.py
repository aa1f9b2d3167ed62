"""Comparison of ensembles, and of heterogeneous with homogeneous ensembles: draws, tests and texts."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from fmcli.ensemble import Combiner, combine_predictions, make_rule
from fmcli.ensemble.comparison import compare_ensembles
from fmcli.ensemble.heterogeneity import compare_heterogeneous
from fmcli.ensemble.predictions import Predictions
from fmcli.errors import UsageError
from fmcli.metrics.comparison import PairedTest
from fmcli.report.comparison import comparison_document, study_document
from fmcli.report.ensemble_evaluation import describe_gain

SOFT = make_rule("soft")


def make_pool(groups, n_samples=60, seed=0, strength=1.0):
    """Draw members. Members of group `x` are more accurate."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n_samples)
    return [
        Predictions(
            logits=(rng.normal(size=(n_samples, 3)) + (1 + strength * (group == "x")) * np.eye(3)[labels]).astype(
                np.float32
            ),
            labels=labels,
            class_names=("a", "b", "c"),
            member=f"m{index}",
            split="test",
            group=group,
        )
        for index, group in enumerate(groups)
    ]


def accuracy(rule, members):
    return float((rule.combine(np.stack([one.logits for one in members])).labels == members[0].labels).mean())


def vote(ensembles):
    return [combine_predictions(members, Combiner(SOFT)) for members in ensembles]


# --- ensembles -------------------------------------------------------------------------------------------


def test_each_ensemble_is_tested_against_the_first():
    pool = make_pool("xxab")
    found = compare_ensembles(["all", "x", "b"], vote([pool, pool[:2], pool[3:]]))
    assert found.ensembles[0].against_first is None
    for one, members in zip(found.ensembles, [pool, pool[:2], pool[3:]], strict=True):
        assert one.evaluation.report.accuracy == accuracy(SOFT, members)
    assert found.agreement is not None
    assert found.duplicates == ()
    assert "Cochran's Q" in " ".join(comparison_document(found).sheets[0].notes)


def test_two_ensembles_have_no_test_of_agreement():
    pool = make_pool("xxab")
    found = compare_ensembles(["all", "x"], vote([pool, pool[:2]]))
    assert found.agreement is None
    document = comparison_document(found)
    assert "Cochran" not in " ".join(document.sheets[0].notes)
    assert document.payload["cochran_q"] is None


def test_two_ensembles_with_the_same_name_are_refused():
    pool = make_pool("xxab")
    with pytest.raises(UsageError, match="two ensembles have the name x"):
        compare_ensembles(["x", "y", "x"], vote([pool, pool[:2], pool[2:]]))


def test_duplicates_under_another_name_are_reported():
    pool = make_pool("xxab")
    copies = [replace(one, member=f"copy of {one.member}") for one in pool[1::-1]]
    found = compare_ensembles(["all", "x", "copy"], vote([pool, pool[:2], copies]))
    assert found.duplicates == (("x", "copy"),)
    assert "x and copy have the same members" in " ".join(comparison_document(found).sheets[0].notes)


def paired(p_value, interval, difference=0.02):
    return PairedTest(30, 10, difference, p_value, interval)


@pytest.mark.parametrize(
    ("gain", "adjusted", "text"),
    [
        (paired(0.01, (0.01, 0.03)), None, "p = 0.01, McNemar's exact test): a real difference"),
        (paired(0.01, (0.01, 0.03)), 0.03, "p = 0.03, McNemar's exact test, adjusted): a real difference"),
        (paired(0.03, (0.01, 0.03)), 0.06, "p = 0.06, McNemar's exact test, adjusted): chance alone could explain it"),
        (paired(0.3, (-0.01, 0.03)), 0.6, "chance alone could explain it"),
        (paired(0.06, (0.001, 0.03)), None, "borderline: the interval and the test disagree"),
        (paired(0.04, (0.0, 0.03)), 0.04, "borderline: the interval and the test disagree"),
        (paired(0.01, (-0.03, -0.01), -0.02), None, "2.00 points below b (95 % interval 1.00 to 3.00; p = 0.01"),
    ],
)
def test_the_adjusted_p_value_decides_about_a_difference(gain, adjusted, text):
    assert text in describe_gain(gain, "a", "b", adjusted)


# --- heterogeneity ---------------------------------------------------------------------------------------


def mixed_by_hand(pool, size):
    """Return the mean over combinations of groups of the mean accuracy of their ensembles."""
    groups = sorted({one.group for one in pool})
    return np.mean(
        [
            np.mean(
                [
                    accuracy(SOFT, list(members))
                    for members in product(*([one for one in pool if one.group == group] for group in chosen))
                ]
            )
            for chosen in combinations(groups, size)
        ]
    )


@pytest.mark.parametrize("size", [2, 3])
def test_each_combination_of_groups_has_the_same_weight(size):
    pool = make_pool("xxxxxaaaabbbb")
    found = compare_heterogeneous(pool, SOFT, size=size, draws=1000)
    assert found.heterogeneous.mean == pytest.approx(mixed_by_hand(pool, size))
    assert found.heterogeneous.name == ("a+b+x" if size == 3 else "2 of a, b, x")
    for one in found.homogeneous:
        own = [member for member in pool if member.group == one.group]
        ensembles = [accuracy(SOFT, list(members)) for members in combinations(own, size)]
        assert one.ensembles.mean == pytest.approx(np.mean(ensembles))
        assert one.member_accuracy == pytest.approx(np.mean([accuracy(SOFT, [member]) for member in own]))
        assert one.gain == pytest.approx(found.heterogeneous.mean - one.ensembles.mean)
        assert np.mean(one.test.interval) == pytest.approx(one.gain)
        assert one.adjusted_p_value >= one.test.p_value


def test_draws_estimate_the_mean_of_all_ensembles():
    pool = make_pool("x" * 12 + "aaaa" + "bbb")
    truth = mixed_by_hand(pool, 2)
    plain = np.mean([accuracy(SOFT, [one, other]) for one, other in combinations(pool, 2) if one.group != other.group])
    drawn = np.mean(
        [compare_heterogeneous(pool, SOFT, size=2, draws=30, seed=seed).heterogeneous.mean for seed in range(40)]
    )
    assert abs(truth - plain) > 0.01  # the plain mean gives large groups more weight
    assert drawn == pytest.approx(truth, abs=0.004)


def test_draws_depend_on_the_seed_and_are_different():
    pool = make_pool("x" * 9 + "a" * 9)
    studies = [compare_heterogeneous(pool, SOFT, draws=20, seed=seed) for seed in (0, 0, 1)]
    assert studies[0] == studies[1] != studies[2]
    assert [len(one.accuracies) for one in (studies[0].heterogeneous, studies[0].homogeneous[0].ensembles)] == [20, 20]


def test_each_member_can_be_left_out_of_few_draws():
    groups = [letter for letter in "abcdefg" for _ in range(9)]
    for seed in range(3):  # ten draws would often share a member
        found = compare_heterogeneous(make_pool(groups, n_samples=20), SOFT, draws=10, seed=seed)
        assert all(np.isfinite(one.test.interval).all() for one in found.homogeneous)


def test_intervals_cover_the_gain_over_members_and_images():
    """Draw members and images many times; the intervals must contain the gain of a very large draw."""

    def draw(seed, n_members, n_samples):
        rng = np.random.default_rng(seed)
        hard = rng.normal(size=(n_samples, 3)) * 1.2  # difficulty of each image, the same for all members
        of_kind = {kind: rng.normal(size=(n_samples, 3)) * 0.8 for kind in "ax"}
        labels = rng.integers(0, 3, n_samples)
        return [
            replace(
                one,
                logits=(
                    hard
                    + of_kind[one.group]
                    + rng.normal(size=(n_samples, 3)) * 0.6
                    + max(0.2, 1 + 0.25 * rng.normal()) * np.eye(3)[labels]
                ).astype(np.float32),
                labels=labels,
            )
            for one in make_pool("a" * n_members + "x" * n_members, n_samples)
        ]

    truth = np.mean([one.gain for one in compare_heterogeneous(draw(1, 30, 20_000), SOFT, draws=40).homogeneous])
    covered = [
        low <= truth <= high
        for seed in range(2, 82)
        for low, high in [compare_heterogeneous(draw(seed, 10, 100), SOFT, draws=20).homogeneous[0].test.interval]
    ]
    assert 0.92 <= np.mean(covered) <= 1  # intervals over members alone would cover about 0.8


def test_the_notes_name_the_better_ensembles():
    pool = make_pool("xxxxaaaabbbb", n_samples=400, strength=2)
    notes = study_document(compare_heterogeneous(pool, SOFT), SOFT).sheets[0].notes
    assert notes[0].startswith("On average, a+b+x is ")
    assert "points more accurate than a+a+a (95 % interval +" in notes[0]
    assert notes[0].endswith("): a real difference.")
    assert "points less accurate than x+x+x" in notes[2]
    assert notes[2].endswith(": a real difference.")
    assert "Holm" in notes[-2]
    notes = study_document(compare_heterogeneous(pool, SOFT, size=2), SOFT).sheets[0].notes
    assert notes[0].startswith("On average, 2 of a, b, x is ")


def test_equal_ensembles_have_no_difference():
    first, *rest = make_pool("aaabbb")
    same = [first, *(replace(one, logits=first.logits) for one in rest)]
    document = study_document(compare_heterogeneous(same, SOFT), SOFT)
    notes = document.sheets[0].notes[0]
    assert notes == "On average, a+b is as accurate as a+a."
    assert document.records[1]["p_value"] == 1


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("aaab", {}, "need at least 3 members of each group; group b has 1"),
        ("aaa", {}, "all members are in group a"),
        ("aaabbb", {"size": 3}, "ensembles of 3 members need 3 groups; the pool has 2 groups: a, b"),
        (["", "", "a", "a"], {}, "the group of m0 is unknown"),
    ],
)
def test_pools_without_enough_groups_or_members_are_refused(groups, options, message):
    with pytest.raises(UsageError, match=message):
        compare_heterogeneous(make_pool(groups), SOFT, **options)
