"""Predictions of several members, and predictions files: round trips, damage and other formats."""

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

from fmcli.cli.remedies import hint_of
from fmcli.ensemble.predictions import (
    FORMAT,
    Predictions,
    _digest,
    digest_arrays,
    load_predictions,
    save_predictions,
    stack_logits,
)
from fmcli.errors import CheckpointError, FmcliError

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
        group="3",
    )
    return replace(predictions, **changes)


def random_members(seed, n_members=4, n_samples=80, **changes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n_samples)
    return [
        make_predictions(rng.normal(size=(n_samples, 3)) + np.eye(3)[labels], labels, f"m{index}", **changes)
        for index in range(n_members)
    ]


def assert_equal_predictions(first, second):
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (first.logits.dtype, first.labels.dtype) == (second.logits.dtype, second.labels.dtype)
    for name in ("class_names", "member", "split", "data_digest", "recipe_digest", "group"):
        assert getattr(first, name) == getattr(second, name)


# --- several members -------------------------------------------------------------------------------------


def test_stacked_logits_keep_the_order_of_members():
    members = random_members(seed=3)
    stacked = stack_logits(members)
    assert (stacked.shape, stacked.dtype) == ((4, 80, 3), np.float32)
    for index, member in enumerate(members):
        np.testing.assert_array_equal(stacked[index], member.logits)


def test_no_members_are_refused():
    with pytest.raises(CheckpointError, match="at least one member"):
        stack_logits([])


def test_a_member_with_different_classes_is_refused_by_name():
    first, second, third = random_members(seed=4, n_members=3)
    stranger = replace(third, class_names=("coat", "shirt", "bag"), member="stranger")  # the order counts
    with pytest.raises(CheckpointError) as caught:
        stack_logits([first, second, stranger])
    for said in ("stranger", "m0", "coat, shirt, bag", "coat, bag, shirt"):
        assert said in caught.value.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_digest": "e" * 64}, "test eeeeeeeeeeee"),
        ({"split": "validation"}, "validation dddddddddddd"),
        ({"split": "validation", "data_digest": ""}, "validation"),
    ],
)
def test_a_member_evaluated_on_different_images_is_refused_by_name(changes, said):
    first, second = random_members(seed=5, n_members=2)
    stranger = replace(second, member="stranger", **changes)
    for members in ([first, stranger], [stranger, first]):
        with pytest.raises(CheckpointError) as caught:
            stack_logits(members)
        for words in ("stranger", "m0", said, "test dddddddddddd"):
            assert words in caught.value.message


@pytest.mark.parametrize(
    ("n_labels", "said"), [(80, "80 and 80 images, with different labels"), (79, "80 and 79 images")]
)
def test_external_predictions_with_different_labels_are_refused_by_name(n_labels, said):
    first, second = random_members(seed=5, n_members=2)
    stranger = replace(second, member="stranger", data_digest="", labels=np.ones(n_labels, dtype=np.int64))
    for members in ([first, stranger], [stranger, first]):
        with pytest.raises(CheckpointError, match=said):
            stack_logits(members)


def test_external_predictions_can_be_combined_in_any_position():
    first, second, third = random_members(seed=6, n_members=3)
    stranger = replace(second, data_digest="", recipe_digest="")
    assert len(stack_logits([stranger, first, third])) == len(stack_logits([first, stranger, third])) == 3
    other = replace(third, data_digest="e" * 64)
    with pytest.raises(CheckpointError, match="m0 and m2 were evaluated on different images"):
        stack_logits([stranger, first, other])


def test_members_of_different_recipes_can_vote_together():
    first, second = random_members(seed=6, n_members=2)
    assert len(stack_logits([first, replace(second, recipe_digest="s" * 64)])) == 2


def test_digest_depends_on_values_shapes_and_dtypes():
    numbers = np.arange(6, dtype=np.int32)
    variants = [numbers, numbers[::-1], numbers.reshape(2, 3), numbers.astype(np.int64), numbers.view(np.uint32)]
    assert len({digest_arrays(variant) for variant in variants}) == len(variants)
    assert digest_arrays(numbers.reshape(2, 3).T) == digest_arrays(numbers.reshape(2, 3).T.copy())
    assert digest_arrays(numbers, numbers) != digest_arrays(numbers)


# --- files -----------------------------------------------------------------------------------------------

# Any UTF-8 text, including line ends.
texts = st.text(st.characters(codec="utf-8"), max_size=12)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4))


@st.composite
def any_predictions(draw):
    n_samples, n_classes = draw(sizes)
    return Predictions(
        logits=draw(
            arrays(
                np.float32, (n_samples, n_classes), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
            )
        ),
        labels=draw(arrays(np.int64, n_samples, elements=st.integers(0, n_classes - 1))),
        class_names=tuple(draw(st.lists(texts, min_size=n_classes, max_size=n_classes))),
        member=draw(texts),
        split=draw(st.sampled_from(["train", "validation", "test"])),
        data_digest=draw(st.text(string.hexdigits, max_size=64)),
        recipe_digest=draw(st.text(string.hexdigits, max_size=64)),
        group=draw(texts),
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
def test_predictions_that_are_not_contiguous_survive_a_round_trip(tmp_path, order):
    plain = random_members(seed=7, n_members=1)[0]
    strided = {
        "rows": plain,
        "columns": replace(plain, logits=np.asfortranarray(plain.logits)),
        "every other row": replace(plain, logits=plain.logits[::2], labels=plain.labels[::2]),
    }[order]
    save_predictions(tmp_path / "test.safetensors", strided)
    assert_equal_predictions(load_predictions(tmp_path / "test.safetensors"), strided)


def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "test.safetensors"
    for member in random_members(seed=8, n_members=2):
        save_predictions(path, member)
    assert load_predictions(path).member == "m1"


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
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


def test_a_file_with_a_changed_header_is_refused_or_consistent(tmp_path):
    content, path = saved_bytes(tmp_path), tmp_path / "changed.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    for index in range(header):
        for flip in (0x01, 0x80):
            path.write_bytes(content[:index] + bytes([content[index] ^ flip]) + content[index + 1 :])
            with suppress(CheckpointError):
                read = load_predictions(path)
                assert read.logits.shape == (2, 3)
                assert read.logits.dtype == np.float32
                assert read.labels.shape == (2,)


@pytest.mark.parametrize("classes", ["coat", '"abc"', '["a", "b", 3]', '{"a": 0, "b": 1, "c": 2}', "3", "[" * 100_000])
def test_a_file_whose_classes_are_not_names_is_refused(tmp_path, classes):
    tensors, header = good_parts(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(save(tensors, metadata=header | {"classes": classes}))
    for header_only in (False, True):
        with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
            load_predictions(tmp_path / "bad.safetensors", header_only=header_only)


def test_the_header_can_be_read_without_the_arrays(tmp_path):
    [member] = random_members(seed=9, n_members=1)
    save_predictions(tmp_path / "test.safetensors", member)
    header = load_predictions(tmp_path / "test.safetensors", header_only=True)
    assert (header.logits.shape, header.labels.shape) == ((0, 3), (0,))
    for name in ("class_names", "member", "split", "data_digest", "recipe_digest", "group"):
        assert getattr(header, name) == getattr(member, name)


def write_with_digest(path, tensors, header):
    """Write a file with a correct digest; other parts can be wrong."""
    path.write_bytes(save(tensors, metadata=header | {"digest": _digest(header, tensors)}))


def test_a_file_that_was_altered_is_refused(tmp_path):
    [member] = random_members(seed=9, n_members=1)
    save_predictions(tmp_path / "whole.safetensors", member)
    content = (tmp_path / "whole.safetensors").read_bytes()
    for index in (content.index(member.member.encode()), len(content) - 1):
        altered = content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]
        (tmp_path / "altered.safetensors").write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"altered\.safetensors is damaged"):
            load_predictions(tmp_path / "altered.safetensors")


def test_a_file_of_another_version_is_refused_with_a_remedy(tmp_path):
    tensors, header = good_parts(tmp_path)
    (tmp_path / "old.safetensors").write_bytes(save(tensors, metadata=header | {"format": "fmcli-predictions-1"}))
    with pytest.raises(CheckpointError) as caught:
        load_predictions(tmp_path / "old.safetensors")
    assert "--save-predictions" in hint_of(caught.value)


def good_parts(tmp_path):
    content = saved_bytes(tmp_path)
    header = {
        "format": FORMAT.name,
        "classes": '["coat", "bag", "shirt"]',
        "member": "m3",
        "split": "test",
        "data_digest": "d",
        "recipe_digest": "r",
        "group": "3",
    }
    return load(content), header


@pytest.mark.parametrize("missing", ["format", "classes", "member", "split", "data_digest", "recipe_digest", "group"])
def test_a_file_whose_header_has_no_entry_for_a_field_is_refused(tmp_path, missing):
    tensors, header = good_parts(tmp_path)
    write_with_digest(tmp_path / "whole.safetensors", tensors, header)
    assert load_predictions(tmp_path / "whole.safetensors").class_names == CLASSES
    del header[missing]
    write_with_digest(tmp_path / "bad.safetensors", tensors, header)
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
        {"logits": np.array([[0, 0, 0], [0, 0, np.nan]], dtype=np.float32)},
        {"logits": np.array([[0, 0, 0], [0, np.inf, 0]], dtype=np.float32)},
    ],
    ids=lambda change: " ".join(f"{name} {array.dtype}{array.shape}" for name, array in change.items()),
)
def test_a_file_with_invalid_arrays_is_refused(tmp_path, change):
    tensors, header = good_parts(tmp_path)
    write_with_digest(tmp_path / "bad.safetensors", tensors | change, header)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load_predictions(tmp_path / "bad.safetensors")


def test_predictions_for_no_images_are_refused_by_name(tmp_path):
    save_predictions(tmp_path / "empty.safetensors", make_predictions(np.zeros((0, 3)), []))
    with pytest.raises(CheckpointError, match=r"empty\.safetensors has no predictions"):
        load_predictions(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("missing", ["logits", "labels"])
def test_a_file_without_an_array_is_refused(tmp_path, missing):
    tensors, header = good_parts(tmp_path)
    del tensors[missing]
    (tmp_path / "bad.safetensors").write_bytes(save(tensors, metadata=header))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load_predictions(tmp_path / "bad.safetensors")


def test_another_kind_of_file_is_refused_by_name(tmp_path):
    (tmp_path / "other.safetensors").write_bytes(save({"weight": np.zeros(3)}))
    (tmp_path / "text.safetensors").write_text("accuracy,0.91\n")
    for name in ("other.safetensors", "text.safetensors", "missing.safetensors", "."):
        with pytest.raises(CheckpointError, match=f"predictions.*{name}|{name}.*predictions"):
            load_predictions(tmp_path / name)
