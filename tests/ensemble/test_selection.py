"""Selection of members: slow reference implementations, and properties of all methods."""

from collections import Counter
from itertools import combinations
from math import ceil

import numpy as np
import pytest

from fmcli.ensemble import selection
from fmcli.ensemble.rules import make_rule, rule_class, rules_where
from fmcli.ensemble.rules.additive import AdditiveRule
from fmcli.ensemble.selection import SELECTION_METHODS, select_members
from fmcli.errors import UsageError

every_method = pytest.mark.parametrize("method", sorted(SELECTION_METHODS))
ADDITIVE = rules_where(lambda rule: isinstance(rule, AdditiveRule) and rule.unweighted is rule)
every_rule = pytest.mark.parametrize("rule", ADDITIVE)
every_measure = pytest.mark.parametrize("by", ["accuracy", "loss"])


def random_pool(seed, n_members=7, n_samples=60, n_classes=4):
    """Draw members of different accuracy."""
    rng = np.random.default_rng(seed)
    y_true = rng.integers(0, n_classes, n_samples)
    noise = rng.normal(size=(n_members, n_samples, n_classes)) * rng.uniform(0.8, 2, (n_members, 1, 1))
    return (noise + 1.5 * np.eye(n_classes)[y_true]).astype(np.float32), y_true


def coarse_pool(seed, n_members=7, n_samples=60, n_classes=4):
    """Draw logits of few values, so that votes, probabilities and members tie exactly."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (n_members, n_samples, n_classes)).astype(np.float32)
    return logits, rng.integers(0, n_classes, n_samples)


def choose(method, pool, rule="soft", tie="probability", **options):
    return select_members(*pool, make_rule(rule, tie=tie), method=method, **{"size": 4, **options})


# --- reference implementations ---------------------------------------------------------------------------


def slow_ranking(logits, y_true, members, rule, by):
    """Return the quality of an ensemble by one measure, then by the other."""
    vote = rule_class(rule)().combine(logits[list(members)])
    accuracy = (vote.labels == y_true).mean()
    loss = -np.log(vote.probabilities[np.arange(len(y_true)), y_true]).mean()
    return (accuracy, -round(loss, 12)) if by == "accuracy" else (-round(loss, 12), accuracy)


def slow_best(pool, team, candidates, rule, by):
    return max(candidates, key=lambda index: (slow_ranking(*pool, [*team, index], rule, by), -index))


def slow_prefix(pool, members, rule, by):
    return max((members[:n] for n in range(1, len(members) + 1)), key=lambda team: slow_ranking(*pool, team, rule, by))


def slow_greedy(pool, rule, by, size, indices=None):
    indices = range(len(pool[0])) if indices is None else sorted(indices)
    by_itself = sorted(indices, key=lambda index: slow_ranking(*pool, [index], rule, by), reverse=True)
    team = slow_prefix(pool, by_itself[: max(1, size // 5)], rule, by)
    while len(team) < size:
        team = [*team, slow_best(pool, team, indices, rule, by)]
    return team, slow_prefix(pool, team, rule, by)


def slow_exhaustive(pool, rule, by, size):
    subsets = [one for k in range(1, size + 1) for one in combinations(range(len(pool[0])), k)]
    return max(subsets, key=lambda members: slow_ranking(*pool, members, rule, by))  # the first of equals


def slow_diverse(pool, rule, by, size, share):
    logits, _ = pool
    team = [slow_best(pool, [], range(len(logits)), rule, by)]
    while len(team) < min(size, len(logits)):
        answers = rule_class(rule)().combine(logits[team]).labels
        rest = [index for index in range(len(logits)) if index not in team]
        rest.sort(key=lambda index, answers=answers: -(logits[index].argmax(axis=1) != answers).sum())
        team.append(slow_best(pool, team, rest[: ceil(share * len(rest))], rule, by))
    return slow_prefix(pool, team, rule, by)


@pytest.fixture
def pools(rule):
    """Return random and coarse pools. Equal geometric losses may differ in single precision."""
    coarse = [] if rule == "geometric" else [coarse_pool(seed) for seed in range(3)]
    return [random_pool(seed) for seed in range(3)] + coarse


@every_rule
@every_measure
@pytest.mark.parametrize("size", [4, 10])  # starts with the best single member, or with up to two
def test_greedy_equals_its_reference(pools, rule, by, size):
    for pool in pools:
        path, best = slow_greedy(pool, rule, by, size)
        chosen = choose("greedy", pool, rule=rule, by=by, size=size)
        assert [index for index, _ in chosen.path] == path
        assert dict(zip(chosen.members, chosen.counts, strict=True)) == Counter(best)
        scores = [abs(slow_ranking(*pool, path[: n + 1], rule, by)[0]) for n in range(len(path))]
        np.testing.assert_allclose([score for _, score in chosen.path], scores, rtol=1e-6)


@every_rule
@every_measure
def test_bagged_greedy_equals_its_reference(pools, rule, by):
    for pool in pools:
        rng = np.random.default_rng(5)
        expected = Counter()
        for _ in range(3):
            indices = rng.choice(7, 4, replace=False).tolist()
            expected.update(slow_greedy(pool, rule, by, 10, indices)[1])
        chosen = choose("greedy", pool, rule=rule, by=by, size=10, bags=3, seed=5)
        assert list(zip(chosen.members, chosen.counts, strict=True)) == list(expected.items())
        assert chosen.path == ()


@every_rule
@every_measure
def test_exhaustive_equals_its_reference(pools, rule, by):
    for pool in pools:
        chosen = choose("exhaustive", pool, rule=rule, by=by)
        assert chosen.members == slow_exhaustive(pool, rule, by, 4)
        assert set(chosen.counts) == {1}


@every_rule
@every_measure
@pytest.mark.parametrize("share", [0.01, 0.4, 1])
def test_diverse_equals_its_reference(monkeypatch, pools, rule, by, share):
    monkeypatch.setattr(selection, "_DIVERSE_SHARE", share)
    for pool in pools:
        chosen = choose("diverse", pool, rule=rule, by=by, size=9)
        assert list(chosen.members) == slow_diverse(pool, rule, by, 9, share)
        assert len(chosen.path) == 7


@every_rule
@pytest.mark.parametrize("tie", ["lowest", "first"])
def test_members_are_selected_for_the_tie_rule_of_the_vote(rule, tie):
    def accuracy(logits, y_true, members):
        return (rule_class(rule)(tie=tie).combine(logits[list(members)]).labels == y_true).mean()

    for seed in range(3):
        pool = coarse_pool(seed)
        every = [one for k in (1, 2, 3) for one in combinations(range(7), k)]
        best = max(accuracy(*pool, one) for one in every)
        assert choose("exhaustive", pool, rule=rule, tie=tie, size=3).score == best
        for method in ("greedy", "diverse"):
            chosen = choose(method, pool, rule=rule, tie=tie, size=6)
            path = [index for index, _ in chosen.path]
            expected = [accuracy(*pool, path[: n + 1]) for n in range(len(path))]
            assert [score for _, score in chosen.path] == expected
            assert chosen.score == max(expected)


@every_method
@every_measure
def test_a_selection_has_the_scores_of_the_best_member_and_the_pool(method, by):
    logits, y_true = random_pool(seed=3)
    chosen = choose(method, (logits, y_true), by=by)
    measure = 0 if by == "accuracy" else 1
    alone = [abs(slow_ranking(logits, y_true, [member], "soft", "accuracy")[measure]) for member in range(7)]
    best = max(alone) if by == "accuracy" else min(alone)
    assert alone[chosen.best_member] == best == pytest.approx(chosen.best_member_score)
    whole = abs(slow_ranking(logits, y_true, range(7), "soft", "accuracy")[measure])
    assert chosen.pool_score == pytest.approx(whole)


@every_rule
def test_the_rule_decides_if_single_precision_cannot(rule):
    # Probabilities are almost 1, so sums tie or differ by less than single precision resolves.
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 3, 80)
    right = rng.random((8, 80)) < 0.6
    answers = np.where(right, y_true, rng.integers(0, 3, (8, 80)))
    pool = (30 * np.eye(3)[answers] + rng.normal(size=(8, 80, 3))).astype(np.float32), y_true
    path, best = slow_greedy(pool, rule, "accuracy", 8)
    chosen = choose("greedy", pool, rule=rule, size=8)
    assert [index for index, _ in chosen.path] == path
    assert dict(zip(chosen.members, chosen.counts, strict=True)) == Counter(best)


# --- properties ------------------------------------------------------------------------------------------


@every_method
@every_rule
@every_measure
def test_the_score_is_the_score_of_the_weighted_vote(method, rule, by):
    logits, y_true = pool = random_pool(seed=10)
    chosen = choose(method, pool, rule=rule, by=by)
    vote = rule_class(rule)(weights=chosen.counts).combine(logits[list(chosen.members)])
    likelihoods = vote.probabilities[np.arange(len(y_true)), y_true]
    assert chosen.score == ((vote.labels == y_true).mean() if by == "accuracy" else -np.log(likelihoods).mean())
    assert len(set(chosen.members)) == len(chosen.members) == len(chosen.counts)
    assert 1 <= sum(chosen.counts) <= 4


@every_method
@every_rule
@every_measure
def test_the_order_of_the_pool_does_not_matter(method, rule, by):
    logits, y_true = pool = random_pool(seed=11, n_samples=800)  # enough images to avoid equal differences
    expected = choose(method, pool, rule=rule, by=by)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(logits))
        chosen = choose(method, (logits[order], y_true), rule=rule, by=by)
        members = [int(order[index]) for index in chosen.members]
        if method == "exhaustive":  # lists members in the pool's order
            members.sort()
        assert (tuple(members), chosen.counts) == (expected.members, expected.counts)
        assert chosen.score == pytest.approx(expected.score, rel=1e-12)


@every_method
@every_rule
@every_measure
def test_a_perfect_member_is_selected_alone(method, rule, by):
    logits, y_true = random_pool(seed=12)
    logits[4] = 40 * np.eye(4)[y_true]
    chosen = choose(method, (logits, y_true), rule=rule, by=by)
    assert (chosen.members, chosen.counts) == ((4,), (1,))
    assert chosen.score == pytest.approx(1 if by == "accuracy" else 0, abs=1e-12)


@every_method
@every_rule
@every_measure
def test_the_first_of_identical_members_is_selected(method, rule, by):
    logits, y_true = random_pool(seed=13)
    chosen = choose(method, (np.repeat(logits[:1], 5, axis=0), y_true), rule=rule, by=by)
    assert chosen.members == (0,)


@every_rule
@every_measure
@pytest.mark.parametrize("method", ["greedy", "diverse"])
def test_the_score_is_between_the_best_member_and_the_best_subset(method, rule, by):
    for seed in range(5):
        pool = random_pool(seed, n_members=6)
        sign = 1 if by == "accuracy" else -1
        alone, best = (sign * choose("exhaustive", pool, rule=rule, by=by, size=size).score for size in (1, 4))
        chosen = choose(method, pool, rule=rule, by=by)
        assert alone - 1e-12 <= sign * chosen.score  # the order of addition changes the last bits
        if set(chosen.counts) == {1}:  # a member with a higher weight can be better than all subsets
            assert sign * chosen.score <= best + 1e-12


@every_measure
def test_the_best_step_of_the_path_is_returned(by):
    chosen = choose("greedy", random_pool(seed=14), by=by, size=20)
    scores = [score for _, score in chosen.path]
    assert len(scores) == 20
    assert chosen.score == pytest.approx(max(scores) if by == "accuracy" else min(scores), rel=1e-9)
    assert Counter(dict(zip(chosen.members, chosen.counts, strict=True))) == Counter(
        index for index, _ in chosen.path[: sum(chosen.counts)]
    )


def test_bags_of_the_whole_pool_agree_and_their_counts_add_up(monkeypatch):
    monkeypatch.setattr(selection, "_BAG_SHARE", 1)
    pool = random_pool(seed=15)
    once = choose("greedy", pool, size=6)
    chosen = choose("greedy", pool, size=6, bags=3)
    assert chosen.members == once.members
    assert chosen.counts == tuple(3 * count for count in once.counts)
    assert chosen.score == once.score


def test_each_bag_selects_and_the_seed_determines_the_bags():
    pool = random_pool(seed=16, n_members=12)
    draws = [choose("greedy", pool, size=1, bags=20, seed=seed) for seed in (0, 0, 1)]
    assert [sum(chosen.counts) for chosen in draws] == [20, 20, 20]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("share", "second"), [(1, 1), (0.5, 2)])
def test_a_smaller_share_selects_more_diverse_members(monkeypatch, share, second):
    # The first member is the best. The third differs most from it; the second improves its vote most.
    y_true = np.array([0, 0, 0, 0, 0, 0])
    answers = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 2]])
    sure = np.array([[3, 3, 3, 3, 1, 1], [3, 3, 1, 1, 3, 3], [1, 1, 1, 3, 3, 3]])
    logits = sure[:, :, None] * np.eye(3)[answers]
    monkeypatch.setattr(selection, "_DIVERSE_SHARE", share)
    assert choose("diverse", (logits, y_true), size=2).path[1][0] == second


@every_method
@every_rule
@every_measure
def test_extreme_logits_and_a_single_class_are_supported(method, rule, by):
    logits, y_true = random_pool(seed=18)
    assert np.isfinite(choose(method, (3e37 * logits, y_true), rule=rule, by=by).score)
    chosen = choose(method, (logits[:, :, :1], np.zeros_like(y_true)), rule=rule, by=by)
    assert chosen.members == (0,)
    assert chosen.score == (1 if by == "accuracy" else 0)


# --- errors ----------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("rule", ["stacking", "two-level"])
def test_a_rule_that_is_not_additive_is_refused_with_the_choices(method, rule):
    with pytest.raises(UsageError, match=rule) as caught:
        choose(method, random_pool(seed=0), rule=rule)
    assert all(name in caught.value.hint for name in ADDITIVE)


@every_method
def test_a_pool_of_one_is_refused(method):
    logits, y_true = random_pool(seed=0)
    with pytest.raises(UsageError, match="at least two members; got 1"):
        choose(method, (logits[:1], y_true))


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_and_their_member_is_named(method, bad):
    logits, y_true = random_pool(seed=0)
    logits[2, 3, 1] = bad
    with pytest.raises(UsageError, match="finite; member 3"):
        choose(method, (logits, y_true))


@every_method
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 2, 3, 4)])
def test_logits_of_another_shape_are_refused_and_their_shape_is_named(method, shape):
    with pytest.raises(UsageError) as caught:
        choose(method, (np.zeros(shape), np.zeros(4, dtype=np.int64)))
    assert str(shape) in caught.value.message


@every_method
def test_labels_of_another_shape_are_refused(method):
    logits, y_true = random_pool(seed=0)
    with pytest.raises(UsageError, match="a label for each image"):
        choose(method, (logits, y_true[1:]))


@pytest.mark.parametrize(("limit", "is_allowed"), [(98, True), (97, False)])
def test_an_exhaustive_search_of_too_many_subsets_is_refused(monkeypatch, limit, is_allowed):
    monkeypatch.setattr(selection, "MAX_SUBSETS", limit)
    if is_allowed:
        assert choose("exhaustive", random_pool(seed=0)).members
    else:
        with pytest.raises(UsageError, match="7 members have 98 subsets of at most 4 members; the limit is 97"):
            choose("exhaustive", random_pool(seed=0))
