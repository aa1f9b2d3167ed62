"""The vote beside its members, the choice of rules, and predictions in memory and on disk."""

import string
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load, save

from fmcli.ensemble import choose_rules, combine, evaluate_ensemble, evaluate_member
from fmcli.errors import CheckpointError, FmcliError, UsageError
from fmcli.metrics import classification_report, mcnemar_test
from fmcli.predictions import FORMAT, Predictions, digest_arrays, load_predictions, save_predictions, stack_logits
from fmcli.recipe.specs import (
    EnsembleSpec,
)
from fmcli.voting import TIE_RULES, VOTING_RULES

CLASSES = ("coat", "bag", "shirt")


def make_predictions(logits, labels, member="m3", **changes):
    predictions = Predictions(
        logits=np.asarray(logits, dtype=np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=CLASSES,
        member=member,
        split="test",
        data_digest="d" * 64,
        recipe_digest="r" * 64,
    )
    return replace(predictions, **changes)


def choosing(choices, labels, member):
    """A member that is sure of these classes."""
    return make_predictions(4 * np.eye(3)[choices], labels, member)


def random_members(seed, n_members=4, n_samples=80):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n_samples)
    return [
        make_predictions(rng.normal(size=(n_samples, 3)) + np.eye(3)[labels], labels, f"m{place}")
        for place in range(n_members)
    ]


def assert_equal_predictions(first, second):
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (first.logits.dtype, first.labels.dtype) == (second.logits.dtype, second.labels.dtype)
    for name in ("class_names", "member", "split", "data_digest", "recipe_digest"):
        assert getattr(first, name) == getattr(second, name)


# --- the vote beside its members -------------------------------------------------------------------------


def test_three_members_that_are_wrong_in_turn_are_right_together():
    labels = [0, 1, 2, 0]
    members = [
        choosing([1, 1, 2, 0], labels, "m3"),
        choosing([0, 2, 2, 0], labels, "m5"),
        choosing([0, 1, 0, 1], labels, "m7"),  # wrong twice
    ]
    result = evaluate_ensemble(members, EnsembleSpec())
    assert [member.name for member in result.members] == ["m3", "m5", "m7"]
    assert [member.report.accuracy for member in result.members] == [0.75, 0.75, 0.5]
    assert (result.vote.name, result.vote.report.accuracy) == ("vote", 1.0)
    assert result.best_member == "m3"  # the first of two that are equally good
    assert (result.gain.only_first, result.gain.only_second, result.gain.difference) == (1, 0, 0.25)
    assert result.n_ties == 0
    # Of four images m3 and m5 differ on two, m3 and m7 on three, m5 and m7 on three.
    assert result.disagreement == pytest.approx((2 + 3 + 3) / 12)
    assert result.split == "test"


def test_ties_are_counted():
    members = [choosing([0, 0], [0, 0], "a"), choosing([1, 0], [0, 0], "b")]
    assert evaluate_ensemble(members, EnsembleSpec()).n_ties == 1


@pytest.mark.parametrize("vote", sorted(VOTING_RULES))
@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_evaluation_is_that_of_the_combined_labels(vote, tie):
    members, spec = random_members(seed=1), EnsembleSpec(vote=vote, tie=tie)
    result = evaluate_ensemble(members, spec)
    combined = combine(stack_logits(members), spec)
    labels = members[0].labels
    expected = classification_report(labels, combined.labels, class_names=CLASSES)
    assert result.vote.report.classes == expected.classes
    np.testing.assert_array_equal(result.vote.report.confusion, expected.confusion)
    assert result.n_ties == combined.ties.sum()
    assert result.spec == spec
    accuracies = [(member.choices == labels).mean() for member in members]
    best = members[int(np.argmax(accuracies))]
    assert result.best_member == best.member
    assert result.gain == mcnemar_test(labels, combined.labels, best.choices)


@pytest.mark.parametrize("vote", sorted(VOTING_RULES))
def test_an_ensemble_of_one_scores_as_its_member(vote):
    [member] = random_members(seed=2, n_members=1)
    result = evaluate_ensemble([member], EnsembleSpec(vote=vote))
    alone = evaluate_member(member)
    assert result.vote.report.classes == alone.report.classes
    assert result.vote.calibration.loss == pytest.approx(alone.calibration.loss)
    assert result.vote.calibration.ece == pytest.approx(alone.calibration.ece)
    assert (result.disagreement, result.gain.p_value) == (0, 1)


@pytest.mark.parametrize(("tie", "winner"), [("probability", 2), ("lowest", 0), ("first", 1)])
def test_the_recipes_tie_rule_is_applied(tie, winner):
    labels = [0]
    members = [choosing([choice], labels, str(choice)) for choice in (1, 2, 0)]
    members[1] = replace(members[1], logits=2 * members[1].logits)  # surer than the others
    assert combine(stack_logits(members), EnsembleSpec(tie=tie)).labels.tolist() == [winner]


def test_an_unknown_voting_rule_is_refused_with_the_nearest_name():
    spec = EnsembleSpec.model_construct(vote="majorty", tie="lowest")
    with pytest.raises(UsageError, match=r"'majorty'.*did you mean 'majority'"):
        combine(np.zeros((1, 1, 3)), spec)


# --- how to vote -----------------------------------------------------------------------------------------


def test_the_rules_that_all_recipes_share_are_taken():
    spec = EnsembleSpec(vote="soft", tie="first")
    assert choose_rules([spec, spec]) == spec


@pytest.mark.parametrize("what", ["vote", "tie"])
def test_recipes_with_different_rules_are_refused_until_one_is_asked_for(what):
    values = {"vote": ("majority", "soft"), "tie": ("lowest", "first")}[what]
    recipes = [EnsembleSpec.model_validate({what: value}) for value in values]
    with pytest.raises(UsageError) as caught:
        choose_rules(recipes)
    assert all(value in caught.value.message for value in values)
    assert f"--{what}" in caught.value.hint
    for value in values:
        assert getattr(choose_rules(recipes, **{what: value}), what) == value


def test_asking_for_one_rule_keeps_the_other():
    spec = EnsembleSpec(vote="majority", tie="first")
    assert choose_rules([spec], vote="soft") == EnsembleSpec(vote="soft", tie="first")
    assert choose_rules([spec], tie="lowest") == EnsembleSpec(vote="majority", tie="lowest")


# --- stacking --------------------------------------------------------------------------------------------


def test_stacked_logits_keep_the_members_order():
    members = random_members(seed=3)
    stacked = stack_logits(members)
    assert (stacked.shape, stacked.dtype) == ((4, 80, 3), np.float32)
    for place, member in enumerate(members):
        np.testing.assert_array_equal(stacked[place], member.logits)


def test_no_members_are_refused():
    with pytest.raises(CheckpointError, match="one member or more"):
        stack_logits([])


def test_a_member_of_other_classes_is_refused_by_name():
    first, second, third = random_members(seed=4, n_members=3)
    stranger = replace(third, class_names=("coat", "shirt", "bag"), member="stranger")  # the order counts
    with pytest.raises(CheckpointError) as caught:
        evaluate_ensemble([first, second, stranger], EnsembleSpec())
    for said in ("stranger", "m0", "coat, shirt, bag", "coat, bag, shirt"):
        assert said in caught.value.message


def test_a_member_evaluated_on_other_images_is_refused_by_name():
    first, second = random_members(seed=5, n_members=2)
    stranger = replace(second, data_digest="e" * 64, split="validation", member="stranger")
    with pytest.raises(CheckpointError) as caught:
        stack_logits([first, stranger])
    for said in ("stranger", "m0", "validation eeeeeeeeeeee", "test dddddddddddd"):
        assert said in caught.value.message


def test_members_of_other_recipes_may_vote_together():
    first, second = random_members(seed=6, n_members=2)
    assert len(stack_logits([first, replace(second, recipe_digest="s" * 64)])) == 2


def test_digest_tells_values_shapes_and_dtypes_apart():
    numbers = np.arange(6, dtype=np.int32)
    variants = [numbers, numbers[::-1], numbers.reshape(2, 3), numbers.astype(np.int64), numbers.view(np.uint32)]
    assert len({digest_arrays(variant) for variant in variants}) == len(variants)
    assert digest_arrays(numbers.reshape(2, 3).T) == digest_arrays(numbers.reshape(2, 3).T.copy())
    assert digest_arrays(numbers, numbers) != digest_arrays(numbers)


# --- files -----------------------------------------------------------------------------------------------

# What TOML and a terminal can hold, line ends and other scripts among it.
texts = st.text(st.characters(codec="utf-8"), max_size=12)
sizes = st.tuples(st.integers(0, 5), st.integers(1, 4))


@st.composite
def any_predictions(draw):
    n_samples, n_classes = draw(sizes)
    return Predictions(
        logits=draw(arrays(np.float32, (n_samples, n_classes), elements=st.floats(width=32))),
        labels=draw(arrays(np.int64, n_samples, elements=st.integers(0, n_classes - 1))),
        class_names=tuple(draw(st.lists(texts, min_size=n_classes, max_size=n_classes))),
        member=draw(texts),
        split=draw(st.sampled_from(["train", "validation", "test"])),
        data_digest=draw(st.text(string.hexdigits, max_size=64)),
        recipe_digest=draw(st.text(string.hexdigits, max_size=64)),
    )


@settings(max_examples=40)  # each example flushes a file to the disk
@given(any_predictions())
def test_predictions_survive_a_round_trip(predictions):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sub" / "test.safetensors"
        save_predictions(path, predictions)
        assert_equal_predictions(load_predictions(path), predictions)
        assert [file.name for file in path.parent.iterdir()] == ["test.safetensors"]


@pytest.mark.parametrize("order", ["rows", "columns", "every other row"])
def test_predictions_that_lie_scattered_in_memory_survive_a_round_trip(tmp_path, order):
    plain = random_members(seed=7, n_members=1)[0]
    scattered = {
        "rows": plain,
        "columns": replace(plain, logits=np.asfortranarray(plain.logits)),
        "every other row": replace(plain, logits=plain.logits[::2], labels=plain.labels[::2]),
    }[order]
    save_predictions(tmp_path / "test.safetensors", scattered)
    assert_equal_predictions(load_predictions(tmp_path / "test.safetensors"), scattered)


def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "test.safetensors"
    for member in random_members(seed=8, n_members=2):
        save_predictions(path, member)
    assert load_predictions(path).member == "m1"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FmcliError, match="file"):
        save_predictions(tmp_path / "file" / "test.safetensors", random_members(seed=8)[0])


def saved_bytes(tmp_path):
    path = tmp_path / "good.safetensors"
    save_predictions(path, make_predictions([[1, 0, 2], [0, 1, 0]], [2, 1]))
    return path.read_bytes()


def test_a_file_cut_short_anywhere_is_refused_by_name(tmp_path):
    content, path = saved_bytes(tmp_path), tmp_path / "cut.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            load_predictions(path)


def test_a_file_with_a_changed_header_is_refused_or_still_fits_together(tmp_path):
    content, path = saved_bytes(tmp_path), tmp_path / "changed.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header):
        for flip in (0x01, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
            with suppress(CheckpointError):
                read = load_predictions(path)  # a letter of a name or digest is not missed
                assert read.logits.shape == (2, 3)
                assert read.logits.dtype == np.float32
                assert read.labels.shape == (2,)


def good_parts(tmp_path):
    content = saved_bytes(tmp_path)
    header = {
        "format": FORMAT,
        "classes": '["coat", "bag", "shirt"]',
        "member": "m3",
        "split": "test",
        "data_digest": "d",
        "recipe_digest": "r",
    }
    return load(content), header


@pytest.mark.parametrize("missing", ["format", "classes", "member", "split", "data_digest", "recipe_digest"])
def test_a_file_whose_header_lacks_an_entry_is_refused(tmp_path, missing):
    tensors, header = good_parts(tmp_path)
    (tmp_path / "whole.safetensors").write_bytes(save(tensors, metadata=header))
    assert load_predictions(tmp_path / "whole.safetensors").class_names == CLASSES
    del header[missing]
    (tmp_path / "bad.safetensors").write_bytes(save(tensors, metadata=header))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load_predictions(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"logits": np.zeros((2, 4), dtype=np.float32)},
        {"logits": np.zeros((3, 3), dtype=np.float32)},
        {"logits": np.zeros(6, dtype=np.float32)},
        {"logits": np.zeros((2, 3), dtype=np.int64)},
        {"labels": np.array(1)},
        {"labels": np.array([[2], [1]])},
        {"labels": np.array([2.0, 1.0])},
        {"labels": np.array([2, 3])},
        {"labels": np.array([2, -1])},
    ],
    ids=lambda change: " ".join(f"{name} {array.dtype}{array.shape}" for name, array in change.items()),
)
def test_a_file_whose_arrays_do_not_fit_is_refused(tmp_path, change):
    tensors, header = good_parts(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(save(tensors | change, metadata=header))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load_predictions(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("missing", ["logits", "labels"])
def test_a_file_without_an_array_is_refused(tmp_path, missing):
    tensors, header = good_parts(tmp_path)
    del tensors[missing]
    (tmp_path / "bad.safetensors").write_bytes(save(tensors, metadata=header))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load_predictions(tmp_path / "bad.safetensors")


def test_what_is_not_a_predictions_file_is_refused_by_name(tmp_path):
    (tmp_path / "other.safetensors").write_bytes(save({"weight": np.zeros(3)}))
    (tmp_path / "text.safetensors").write_text("accuracy,0.91\n")
    for name in ("other.safetensors", "text.safetensors", "missing.safetensors", "."):
        with pytest.raises(CheckpointError, match=f"predictions.*{name}|{name}.*predictions"):
            load_predictions(tmp_path / name)
