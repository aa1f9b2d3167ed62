"""Train one member: results, files, snapshots, averages, resuming and errors."""

import json
import math
import os
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fmcli.checkpoints.checkpoint import load_checkpoint, read_header, versions
from fmcli.checkpoints.history import HISTORY_FILE, best_epoch, is_stalled, read_history
from fmcli.checkpoints.layout import MODEL_FILE, find_checkpoints
from fmcli.checkpoints.tensors import load_tensors, save_tensors
from fmcli.cli.remedies import hint_of
from fmcli.data import ImageSet, Splits
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import CheckpointError, DeviceError, FmcliError
from fmcli.events import (
    BatchPredicted,
    CheckpointSaved,
    EpochFinished,
    MemberFinished,
    MemberStarted,
    StepFinished,
    StopRequest,
)
from fmcli.networks.inference import InferenceNetwork, predict_logits
from fmcli.recipe import Recipe, resolve_recipe
from fmcli.training import STATE_FILE, VALIDATION_FILE, Fingerprint, loaders, saving, train_member
from fmcli.training.fingerprint import PLANNED, STARTED, check_fingerprint
from fmcli.training.learner import Learner
from fmcli.training.rng import Generators
from fmcli.training.state import load_state
from fmcli.training.validation import Validator
from tests.helpers import StopAt

CPU = torch.device("cpu")
CLASSES = ("top", "middle", "bottom")
N_TRAIN, N_VALIDATION = 96, 24

SEQUENTIAL = {
    "family": "sequential",
    "layers": [
        {"type": "conv", "filters": 4, "kernel_size": 3, "padding": "same", "activation": "relu", "l2": 1e-3},
        {"type": "max-pool", "size": 3},
        {"type": "dropout", "rate": 0.3},
        {"type": "flatten"},
        {"type": "dense", "units": 3, "l2": 1e-3},
    ],
}


def draw_thirds(n_images: int, seed: int, *, side: int = 9) -> ImageSet:
    """Draw images whose class is the bright third of the rows. The numbers of RandomState never change."""
    draw = np.random.RandomState(seed)
    labels = draw.randint(0, len(CLASSES), n_images).astype(np.int64)
    images = draw.randint(0, 90, (n_images, 1, side, side)).astype(np.uint8)
    third = side // len(CLASSES)
    for image, label in zip(images, labels, strict=True):
        image[:, label * third : (label + 1) * third] += 110
    return ImageSet(images, labels, CLASSES)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(draw_thirds(N_TRAIN, 0), draw_thirds(N_VALIDATION, 1), draw_thirds(N_VALIDATION, 2))


# The tests pass `splits` directly, so this table only tells the recipe that there are validation images.
VALIDATED = {"source": "idx:drawn", "validation": {"first": 1}}


def small_recipe(n_members: int = 1, **tables: dict[str, object]) -> Recipe:
    table = {
        "data": {"source": "idx:drawn"},
        "model": {"family": "kernel-cnn", "form": "pooled", "kernel_size": 3, "widths": [4, 8], "depth": 1},
        "members": [{"name": f"m{number}"} for number in range(1, n_members + 1)],
        **tables,
    }
    table["trainer"] = {"epochs": 3, "batch_size": 32, "precision": "fp32", **tables.get("trainer", {})}
    return resolve_recipe(table, name="drawn")


def train(recipe, splits, folder, *, name="m1", **options) -> list[EpochFinished]:
    return train_member(recipe, name, splits, folder, device=CPU, **options)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / MODEL_FILE)


def same_tensors(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(history: list[EpochFinished]) -> list[EpochFinished]:
    return [replace(epoch, seconds=0, images_per_second=0) for epoch in history]


# --- training ---------------------------------------------------------------------------------------------


def test_loss_trajectory_is_pinned(splits, tmp_path):
    recipe = small_recipe(
        optimizer={"name": "adamw", "lr": 0.01},
        schedule={"name": "linear", "warmup": 0.25},
        augment={"flip": 0.5, "shift": 1},
        trainer={"label_smoothing": 0.1, "weight_average": 0.9},
    )
    history = train(recipe, splits, tmp_path)
    # Measured with torch 2.15 on an x86 CPU. Other CPUs and versions of torch sum in a different order.
    assert [epoch.train_loss for epoch in history] == pytest.approx([2.226075, 1.542658, 1.205730], rel=1e-3)
    assert [epoch.validation_loss for epoch in history] == pytest.approx([1.135952, 1.121259, 1.109767], rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_reaches_high_accuracy(splits, tmp_path, precision):
    recipe = small_recipe(optimizer={"lr": 0.02}, trainer={"epochs": 6, "batch_size": 16, "precision": precision})
    history = train(recipe, splits, tmp_path)
    assert history[-1].validation_accuracy > 0.95
    assert history[-1].train_loss < history[0].train_loss
    assert load_checkpoint(tmp_path, device=CPU).header.trained_on["precision"] == precision
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(tmp_path).values())


def test_same_seed_gives_the_same_weights_bit_for_bit(splits, tmp_path):
    recipe = small_recipe(augment={"flip": 0.5, "rotate": 10, "erase": 0.5}, model=SEQUENTIAL)
    histories = [timeless(train(recipe, splits, tmp_path / name)) for name in ("one", "two")]
    assert histories[0] == histories[1]
    assert same_tensors(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_different_seeds_give_different_weights(splits, tmp_path):
    for seed in (0, 1):
        train(small_recipe(trainer={"seed": seed, "epochs": 1}), splits, tmp_path / str(seed))
    assert not same_tensors(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_members_of_one_recipe_differ_by_their_index(splits, tmp_path):
    recipe = small_recipe(n_members=2, trainer={"epochs": 1})
    for name in ("m1", "m2"):
        train(recipe, splits, tmp_path / name, name=name)
    assert not same_tensors(weights(tmp_path / "m1"), weights(tmp_path / "m2"))


def test_global_random_state_is_neither_used_nor_changed(splits, tmp_path):
    recipe = small_recipe(model=SEQUENTIAL, augment={"shift": 1}, trainer={"epochs": 1})
    torch.manual_seed(1)
    train(recipe, splits, tmp_path / "one")
    before = torch.get_rng_state()
    train(recipe, splits, tmp_path / "two")
    assert torch.equal(torch.get_rng_state(), before)
    assert same_tensors(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_full_batch_takes_one_step_per_epoch(splits, tmp_path):
    recipe = small_recipe(model=SEQUENTIAL_WITHOUT_NOISE, trainer={"full_batch": True, "batch_size": 7, "epochs": 2})
    steps = []
    history = train(recipe, splits, tmp_path, reporter=steps.append)
    assert [event.step for event in steps if isinstance(event, StepFinished)] == [1, 1]
    assert len(history) == 2


def test_full_batch_equals_a_batch_of_all_images(splits, tmp_path):
    for name, trainer in (("full", {"full_batch": True}), ("large", {"batch_size": N_TRAIN})):
        train(small_recipe(trainer={"epochs": 1, **trainer}), splits, tmp_path / name)
    assert same_tensors(weights(tmp_path / "full"), weights(tmp_path / "large"))


SEQUENTIAL_WITHOUT_NOISE = {
    "family": "sequential",
    "layers": [{"type": "flatten"}, {"type": "dense", "units": 3}],
}


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
def test_drop_last_skips_the_smaller_batch(splits, tmp_path, drop_last, steps):
    recipe = small_recipe(trainer={"epochs": 1, "batch_size": 40, "drop_last": drop_last})
    events = []
    train(recipe, splits, tmp_path, reporter=events.append)
    assert sum(isinstance(event, StepFinished) for event in events) == steps


def test_loss_at_learning_rate_zero_is_the_cross_entropy_of_the_initial_weights(splits, tmp_path):
    recipe = small_recipe(model=SEQUENTIAL_WITHOUT_NOISE, optimizer={"name": "sgd", "lr": 1e-30})
    history = train(recipe, splits, tmp_path)
    logits = logits_of(tmp_path, splits.train)
    picked = logits.log_softmax(dim=1)[torch.arange(N_TRAIN), torch.from_numpy(splits.train.labels)]
    assert [epoch.train_loss for epoch in history] == pytest.approx([-picked.mean().item()] * 3, rel=1e-5)


def test_label_smoothing_adds_the_uniform_distribution(splits, tmp_path):
    recipe = small_recipe(
        model=SEQUENTIAL_WITHOUT_NOISE,
        optimizer={"name": "sgd", "lr": 1e-30},
        trainer={"epochs": 1, "label_smoothing": 0.3},
    )
    history = train(recipe, splits, tmp_path)
    log_probabilities = logits_of(tmp_path, splits.train).log_softmax(dim=1)
    picked = log_probabilities[torch.arange(N_TRAIN), torch.from_numpy(splits.train.labels)]
    smoothed = -(0.7 * picked + 0.3 * log_probabilities.mean(dim=1)).mean().item()
    assert history[0].train_loss == pytest.approx(smoothed, rel=1e-5)
    assert history[0].validation_loss != pytest.approx(smoothed, rel=1e-5)


def test_learning_rate_follows_the_schedule(splits, tmp_path):
    recipe = small_recipe(optimizer={"lr": 0.1}, schedule={"name": "exponential", "gamma": 0.5})
    assert [epoch.lr for epoch in train(recipe, splits, tmp_path)] == pytest.approx([0.1, 0.05, 0.025])


def test_clipping_limits_the_size_of_a_step(splits, tmp_path):
    tables = {"optimizer": {"name": "sgd", "lr": 1.0}}
    recipe = small_recipe(trainer={"epochs": 1, "full_batch": True, "clip_norm": 1e-3, "precision": "fp32"}, **tables)
    still = small_recipe(
        trainer={"epochs": 1, "full_batch": True, "precision": "fp32"}, optimizer={"name": "sgd", "lr": 1e-30}
    )
    train(recipe, splits, tmp_path / "clipped")
    train(still, splits, tmp_path / "still")
    moved, before = weights(tmp_path / "clipped"), weights(tmp_path / "still")
    trained = [name for name in moved if "running" not in name and "batches" not in name]
    distance = sum((moved[name] - before[name]).square().sum() for name in trained).sqrt()
    assert float(distance) == pytest.approx(1e-3, rel=1e-2)


def test_weights_of_the_best_epoch_are_kept(splits, tmp_path):
    recipe = small_recipe(trainer={"epochs": 6, "batch_size": 32, "keep": "best"}, **UNSTABLE)
    history = train(recipe, splits, tmp_path)
    best = best_epoch(history, "accuracy")
    header = read_header(tmp_path)
    assert header.epochs == best + 1
    accuracy = float((load_predictions(tmp_path / VALIDATION_FILE).choices == splits.validation.labels).mean())
    assert accuracy == pytest.approx(history[best].validation_accuracy, abs=0.02)
    assert history[best].validation_accuracy == max(epoch.validation_accuracy for epoch in history)


def epoch_of(accuracy: float, loss: float) -> EpochFinished:
    return EpochFinished("m", 1, 0.1, 1.0, 0.5, loss, accuracy, 1.0, 1.0)


SOME_EPOCHS = [
    epoch_of(*figures) for figures in ((0.5, 1.0), (0.7, 0.9), (0.7, 0.8), (0.7, 0.8), (0.6, 0.1), (0.6, 0.1))
]


@pytest.mark.parametrize(("monitor", "best"), [("accuracy", 2), ("loss", 4)])
def test_best_epoch_is_the_first_of_equal_epochs(monitor, best):
    assert best_epoch(SOME_EPOCHS, monitor) == best


@pytest.mark.parametrize(
    ("monitor", "patience", "stops_after"),
    [("accuracy", 0, 4), ("accuracy", 1, 4), ("accuracy", 2, 5), ("accuracy", 3, 6), ("loss", 0, 4), ("loss", 2, None)],
)
def test_training_is_stalled_after_n_epochs_without_improvement(monitor, patience, stops_after):
    stalled = [n for n in range(1, len(SOME_EPOCHS) + 1) if is_stalled(SOME_EPOCHS[:n], monitor, patience)]
    assert (stalled[0] if stalled else None) == stops_after


# The learning rate grows until training diverges: the last epochs are worse than the best one.
UNSTABLE = {"optimizer": {"name": "sgd", "lr": 5.0}, "schedule": {"name": "constant", "warmup": 0.9}, "data": VALIDATED}


@pytest.mark.parametrize("keep", ["last", "best"])
def test_training_stops_early(splits, tmp_path, keep):
    whole = train(small_recipe(trainer={"epochs": 9, "keep": keep}, **UNSTABLE), splits, tmp_path / "whole")
    early = train(
        small_recipe(trainer={"epochs": 9, "keep": keep, "patience": 2}, **UNSTABLE), splits, tmp_path / "early"
    )
    best = best_epoch(early, "accuracy")
    assert len(early) == best + 3 < len(whole)
    assert timeless(early) == timeless(whole[: len(early)])
    header = read_header(tmp_path / "early")
    assert header.epochs == (best + 1 if keep == "best" else len(early))
    assert not (tmp_path / "early" / STATE_FILE).exists()


RETRAINED = {"trainer": {"epochs": 5, "keep": "retrained"}, **UNSTABLE}


def test_retrained_member_trains_from_scratch_for_the_best_number_of_epochs(splits, tmp_path):
    events = []
    history = train(small_recipe(**RETRAINED), splits, tmp_path, reporter=events.append)
    first = [epoch for epoch in history if not epoch.retrained]
    again = [epoch for epoch in history if epoch.retrained]
    assert len(first) == 5
    assert [epoch.epoch for epoch in again] == list(range(1, best_epoch(first, "accuracy") + 2))
    assert len(again) < 5
    assert [epoch.lr for epoch in again] == [epoch.lr for epoch in first[: len(again)]]
    assert again[0].train_loss != first[0].train_loss  # different initial weights and order of images
    assert [(event.epochs, event.retrained) for event in events if isinstance(event, MemberStarted)] == [
        (5, False),
        (len(again), True),
    ]
    assert read_header(tmp_path).epochs == len(again)
    accuracy = float((load_predictions(tmp_path / VALIDATION_FILE).choices == splits.validation.labels).mean())
    assert accuracy == pytest.approx(again[-1].validation_accuracy, abs=0.02)


@pytest.mark.parametrize("epochs", [1, 4, 5, 6])
def test_retrained_member_resumes_exactly(splits, tmp_path, epochs):
    recipe = small_recipe(augment={"shift": 1}, **RETRAINED)
    n_epochs = len(train(recipe, splits, tmp_path / "probe"))
    assert_resumes_exactly(recipe, splits, tmp_path, StopAt(EpochFinished, min(epochs, n_epochs - 1)))


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"device": "cuda"}, "started on cuda; resuming on cpu would change", "--device cuda"),
        ({"threads": 77}, "started with 77 CPU threads; resuming with 1 would change", "--threads 77"),
        ({"versions": {"fmcli": "0.0.1"}}, "started with fmcli 0.0.1", "install fmcli 0.0.1"),
    ],
)
def test_state_from_a_different_environment_is_refused(splits, tmp_path, change, message, hint):
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), splits, tmp_path, reporter=StopAt(EpochFinished, 1))
    metadata, tensors = load_tensors(tmp_path / STATE_FILE)
    changed = json.dumps(json.loads(metadata["fingerprint"]) | change)
    save_tensors(tmp_path / STATE_FILE, tensors, metadata | {"fingerprint": changed})
    with pytest.raises(CheckpointError, match=message) as caught:
        train(small_recipe(), splits, tmp_path, resume=True)
    assert hint in hint_of(caught.value)


def test_fingerprint_that_differs_from_the_plan_is_refused(splits, tmp_path):
    recipe = small_recipe()
    now = Fingerprint.of(recipe.members[0], recipe, splits, CPU)
    check_fingerprint(now, now, PLANNED, member="m", folder=tmp_path)
    planned = replace(now, versions={**now.versions, "torch": "2.8.0"})
    with pytest.raises(
        CheckpointError, match=r"was planned with torch 2\.8\.0; it would now be trained with"
    ) as caught:
        check_fingerprint(now, planned, PLANNED, member="m", folder=tmp_path)
    assert hint_of(caught.value).startswith("install torch 2.8.0 again; use --resume to continue")


@pytest.mark.parametrize(
    ("bf16", "device", "expected"), [(True, "cpu", True), (False, "cpu", False), (True, "cuda", False)]
)
def test_fingerprint_has_numbas_version_if_the_kernels_are_used(splits, bf16, device, expected):
    recipe = small_recipe(trainer={"precision": "bf16" if bf16 else "fp32"})
    found = Fingerprint.of(recipe.members[0], recipe, splits, torch.device(device))
    assert found.versions.get("numba") == (versions().get("numba", "none") if expected else None)


@pytest.mark.parametrize(
    ("before", "now", "message", "hint"),
    [
        ("0.1", "0.2", "with numba 0.1; resuming with numba 0.2", "install numba 0.1 again"),
        ("none", "0.2", "without numba; resuming with numba 0.2", "uninstall numba"),
        ("0.1", "none", "with numba 0.1; resuming without numba", "install numba 0.1 again"),
    ],
)
def test_state_from_a_different_numba_is_refused(splits, tmp_path, before, now, message, hint):
    recipe = small_recipe(trainer={"precision": "bf16"})
    found = Fingerprint.of(recipe.members[0], recipe, splits, CPU)
    earlier, current = (replace(found, versions={**found.versions, "numba": version}) for version in (before, now))
    with pytest.raises(CheckpointError, match=message) as caught:
        check_fingerprint(current, earlier, STARTED, member="m", folder=tmp_path)
    assert hint_of(caught.value).startswith(hint)


@pytest.mark.parametrize("threads", ["one", None])
def test_checkpoint_without_thread_count_is_refused(splits, tmp_path, threads):
    train(small_recipe(), splits, tmp_path)
    header = read_header(tmp_path)
    trained_on = {key: value for key, value in header.trained_on.items() if key != "threads"}
    trained_on |= {"threads": threads} if threads else {}
    with pytest.raises(CheckpointError, match="does not record the device, threads and precision"):
        Fingerprint.of_header(header.model_copy(update={"trained_on": trained_on}))


def test_l2_penalty_makes_kernels_smaller(splits, tmp_path):
    norms = []
    for l2 in (0.0, 1.0):
        layers = [{"type": "flatten"}, {"type": "dense", "units": 3, "l2": l2}]
        recipe = small_recipe(model={"family": "sequential", "layers": layers}, optimizer={"lr": 0.01})
        train(recipe, splits, tmp_path / str(l2))
        norms.append(weights(tmp_path / str(l2))["1.weight"].norm())
    assert norms[1] < 0.9 * norms[0]


def logits_of(folder, images: ImageSet) -> torch.Tensor:
    member = load_checkpoint(folder, device=CPU)
    return predict_logits(
        InferenceNetwork(member.model), [torch.from_numpy(images.images)], member.header.normalization
    )


# --- snapshots --------------------------------------------------------------------------------------------


def snapshot_recipe(cycles: int = 3, epochs_per_cycle: int = 2, **trainer: object) -> Recipe:
    return small_recipe(
        optimizer={"lr": 0.02},
        augment={"shift": 1},
        schedule={"name": "cyclic", "cycles": cycles},
        trainer={"epochs": cycles * epochs_per_cycle, "keep": "snapshots", **trainer},
    )


def all_weights(folder) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: load_file(path) for path in sorted(folder.rglob(MODEL_FILE))}


def same_snapshots(first, second) -> bool:
    ours, theirs = all_weights(first / "m1"), all_weights(second / "m1")
    return ours.keys() == theirs.keys() and all(same_tensors(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("weight_average", [None, 0.9])
def test_snapshots_are_the_weights_at_the_end_of_each_cycle(splits, tmp_path, weight_average):
    train(snapshot_recipe(weight_average=weight_average), splits, tmp_path / "m1")
    for cycles in (1, 2, 3):  # training with fewer cycles takes the same first steps
        shorter = snapshot_recipe(cycles, keep="last", weight_average=weight_average)
        train(shorter, splits, tmp_path / str(cycles))
        ours = tmp_path / "m1" if cycles == 3 else tmp_path / "m1" / f"snapshot-{cycles}"
        assert same_tensors(weights(ours), weights(tmp_path / str(cycles)))
        assert list(tmp_path.glob("?/snapshot-*")) == []


def test_files_of_snapshots(splits, tmp_path):
    history = train(snapshot_recipe(), splits, tmp_path / "m1")
    folders = [path.parent for path in find_checkpoints(tmp_path)]
    assert [str(folder.relative_to(tmp_path)) for folder in folders] == ["m1/snapshot-1", "m1/snapshot-2", "m1"]
    headers = [read_header(folder) for folder in folders]
    assert [header.epochs for header in headers] == [2, 4, 6]
    assert [header.snapshot for header in headers] == [1, 2, None]
    assert [header.name for header in headers] == ["m1/snapshot-1", "m1/snapshot-2", "m1"]
    for folder, header in zip(folders, headers, strict=True):
        predictions = load_predictions(folder / VALIDATION_FILE)
        assert predictions.member == header.name
        assert np.array_equal(predictions.logits, logits_of(folder, splits.validation).numpy())
        accuracy = (predictions.choices == predictions.labels).mean()
        assert accuracy == pytest.approx(history[header.epochs - 1].validation_accuracy)
        assert header.model_copy(update={"epochs": 6, "snapshot": None}) == headers[-1]
    for folder in folders[:-1]:
        assert sorted(path.name for path in folder.iterdir()) == sorted([MODEL_FILE, VALIDATION_FILE])


def test_snapshots_need_no_validation_images(splits, tmp_path):
    train(snapshot_recipe(), replace(splits, validation=None), tmp_path)
    assert [path.name for path in (tmp_path / "snapshot-1").iterdir()] == [MODEL_FILE]


def test_one_cycle_gives_no_snapshot(splits, tmp_path):
    train(snapshot_recipe(1), splits, tmp_path)
    assert find_checkpoints(tmp_path) == [tmp_path / MODEL_FILE]


def test_each_snapshot_is_reported_when_its_cycle_ends(splits, tmp_path):
    events = []
    train(snapshot_recipe(2, 1), splits, tmp_path, reporter=events.append)
    saved = [event.path for event in events if isinstance(event, CheckpointSaved)]
    state = tmp_path / STATE_FILE
    assert saved == [tmp_path / "snapshot-1" / MODEL_FILE, state, state, tmp_path / MODEL_FILE]
    first_epoch = next(event for event in events if isinstance(event, EpochFinished))
    assert events.index(CheckpointSaved(saved[1])) < events.index(first_epoch)


SNAPSHOT_STOPS = {
    "within the first epoch": [StepFinished, 2],
    "within the first cycle": [EpochFinished, 1],
    "with a snapshot and no state of its epoch": [CheckpointSaved, 2],
    "after the first cycle": [EpochFinished, 2],
    "within the second cycle": [StepFinished, 8],
    "before the last cycle": [EpochFinished, 4],
    "within the last cycle": [EpochFinished, 5],
}


@pytest.mark.parametrize("stop", SNAPSHOT_STOPS.values(), ids=SNAPSHOT_STOPS)
@pytest.mark.parametrize("weight_average", [None, 0.9])
def test_resumed_run_has_the_snapshots_of_an_uninterrupted_run(splits, tmp_path, stop, weight_average):
    recipe = snapshot_recipe(weight_average=weight_average)
    whole = train(recipe, splits, tmp_path / "whole" / "m1")
    broken = tmp_path / "broken" / "m1"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, splits, broken, reporter=StopAt(*stop))
    with pytest.raises(CheckpointError, match=r"no trained member|does not exist"):
        find_checkpoints(broken)
    assert timeless(train(recipe, splits, broken, resume=True)) == timeless(whole)
    assert same_snapshots(tmp_path / "whole", tmp_path / "broken")
    assert not (broken / STATE_FILE).exists()


def test_run_killed_while_writing_a_snapshot_resumes(splits, tmp_path, monkeypatch):
    recipe = snapshot_recipe(2, 1)
    train(recipe, splits, tmp_path / "whole" / "m1")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fmcli.training.checkpoint_writer.save_checkpoint", die)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, splits, tmp_path / "broken" / "m1")
    assert [path.name for path in tmp_path.glob("broken/m1/snapshot-1/*")] == [VALIDATION_FILE]
    train(recipe, splits, tmp_path / "broken" / "m1", resume=True)
    assert same_snapshots(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("damage", ["missing", "truncated", "different recipe", "different images"])
def test_run_does_not_resume_without_its_snapshots(splits, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(snapshot_recipe(), splits, tmp_path / "m1", reporter=StopAt(EpochFinished, 3))
    path = tmp_path / "m1" / "snapshot-1" / MODEL_FILE
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        others = splits if damage == "different recipe" else replace(splits, train=draw_thirds(N_TRAIN, 9))
        train(snapshot_recipe(seed=1 if others is splits else 0), others, tmp_path / "other")
        path.write_bytes((tmp_path / "other" / "snapshot-1" / MODEL_FILE).read_bytes())
    with pytest.raises(CheckpointError, match="member m1 cannot resume without its snapshot 1") as caught:
        train(snapshot_recipe(), splits, tmp_path / "m1", resume=True)
    assert "--overwrite" in hint_of(caught.value)


@pytest.mark.parametrize("resume", [False, True])
def test_training_from_scratch_removes_earlier_snapshots(splits, tmp_path, resume):
    with pytest.raises(KeyboardInterrupt):
        train(snapshot_recipe(), splits, tmp_path / "m1", reporter=StopAt(EpochFinished, 5))
    assert len(all_weights(tmp_path)) == 2
    (tmp_path / "m1" / STATE_FILE).unlink()
    (tmp_path / "m1" / "snapshot-1" / f".{MODEL_FILE}.abc.part").write_bytes(b"half a model")
    train(snapshot_recipe(2, 3), splits, tmp_path / "m1", resume=resume)
    train(snapshot_recipe(2, 3), splits, tmp_path / "new" / "m1")
    assert same_snapshots(tmp_path, tmp_path / "new")
    assert not (tmp_path / "m1" / "snapshot-2").exists()


def test_finished_snapshots_are_not_trained_again(splits, tmp_path):
    train(snapshot_recipe(), splits, tmp_path)
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    events = []
    train(snapshot_recipe(), splits, tmp_path, resume=True, reporter=events.append)
    assert events == [MemberFinished("m1", tmp_path / MODEL_FILE, already_trained=True)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == content


def test_trained_member_with_a_missing_snapshot_is_refused(splits, tmp_path):
    train(snapshot_recipe(), splits, tmp_path)
    (tmp_path / "snapshot-2" / MODEL_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"m1 in .* is trained, but has no snapshot-2") as caught:
        train(snapshot_recipe(), splits, tmp_path, resume=True)
    assert "--overwrite" in hint_of(caught.value)


# --- bagging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bagging", [1.0, 0.5])
def test_each_member_trains_on_its_own_bootstrap_sample(splits, tmp_path, bagging):
    """The weights are equal if only the images that the generator draws exist, without bagging."""
    data = {"source": "idx:drawn", "normalize": "unit"}
    samples = []
    for index, name in enumerate(("m1", "m2")):
        generator = Generators.seeded(0, index, CPU).sample
        indices = torch.randint(N_TRAIN, (round(bagging * N_TRAIN),), generator=generator).numpy()
        samples.append(set(indices))
        assert len(samples[-1]) < len(indices)  # drawn with replacement
        train(small_recipe(2, data=data, trainer={"bagging": bagging}), splits, tmp_path / name, name=name)
        sample = replace(splits, train=splits.train.subset(indices))
        train(small_recipe(2, data=data), sample, tmp_path / f"{name}-alone", name=name)
        assert same_tensors(weights(tmp_path / name), weights(tmp_path / f"{name}-alone"))
    assert samples[0] != samples[1]


def test_normalization_and_digests_of_a_bagged_member_use_all_images(splits, tmp_path):
    for name, trainer in (("bagged", {"bagging": 0.1}), ("plain", {})):
        train(small_recipe(trainer={"epochs": 1, **trainer}), splits, tmp_path / name)
    bagged, plain = read_header(tmp_path / "bagged"), read_header(tmp_path / "plain")
    assert bagged.member.trainer.bagging == 0.1
    assert (bagged.mean, bagged.std, bagged.data_digests) == (plain.mean, plain.std, plain.data_digests)


@pytest.mark.parametrize(
    ("trainer", "steps"), [({}, 2), ({"full_batch": True}, 1), ({"batch_size": 40, "drop_last": True}, 1)]
)
def test_steps_per_epoch_depend_on_the_size_of_the_sample(splits, tmp_path, trainer, steps):
    events = []
    recipe = small_recipe(trainer={"epochs": 1, "bagging": 0.5, **trainer})
    train(recipe, splits, tmp_path, reporter=events.append)
    assert events[0].steps_per_epoch == sum(isinstance(event, StepFinished) for event in events) == steps


def test_retrained_member_has_the_same_sample(splits, tmp_path):
    recipe = small_recipe(**{**RETRAINED, "trainer": {**RETRAINED["trainer"], "bagging": 0.5}})
    assert_resumes_exactly(recipe, splits, tmp_path, StopAt(EpochFinished, 5))
    sample = Generators.seeded(0, 0, CPU).sample
    indices = torch.randint(N_TRAIN, (N_TRAIN // 2,), generator=sample).numpy()
    data = {**VALIDATED, "normalize": "unit"}
    bagged = small_recipe(**{**RETRAINED, "trainer": {**RETRAINED["trainer"], "bagging": 0.5}, "data": data})
    train(bagged, splits, tmp_path / "bagged")
    plain = small_recipe(**{**RETRAINED, "data": data})
    train(plain, replace(splits, train=splits.train.subset(indices)), tmp_path / "plain")
    assert same_tensors(weights(tmp_path / "bagged"), weights(tmp_path / "plain"))


# --- stochastic weight averaging --------------------------------------------------------------------------


def trained_names(tensors: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of weights without batch norm statistics."""
    return {name for name in tensors if "running" not in name and "batches" not in name}


def swa_recipe(swa: float | None, epochs: int = 4, **tables: dict[str, object]) -> Recipe:
    trainer = {"epochs": epochs, **({} if swa is None else {"swa": swa})}
    return small_recipe(**{"optimizer": {"lr": 0.02}, **tables, "trainer": {**trainer, **tables.get("trainer", {})}})


def test_weights_after_each_of_the_last_epochs_are_averaged_equally(splits, tmp_path):
    history = train(swa_recipe(0.75), splits, tmp_path / "swa")
    ends = []
    for epochs in (2, 3, 4):
        plain = train(swa_recipe(None, epochs), splits, tmp_path / str(epochs))
        ends.append(weights(tmp_path / str(epochs)))
    averaged = weights(tmp_path / "swa")
    for name in trained_names(averaged):
        mean = torch.stack([end[name].double() for end in ends]).mean(dim=0)
        torch.testing.assert_close(averaged[name].double(), mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(averaged[name], ends[-1][name])
    # Averaging does not change the steps, only the final weights.
    assert timeless(history[:-1]) == timeless(plain[:-1])
    assert history[-1].train_loss == plain[-1].train_loss
    assert history[-1].validation_loss != plain[-1].validation_loss


def assert_statistics_are_of(folder, images: list[torch.Tensor]) -> None:
    """Check that the statistics of the first batch norm layer are the means over these batches."""
    member = load_checkpoint(folder, device=CPU)
    norms = [module for module in member.model if isinstance(module, torch.nn.BatchNorm2d)]
    before = member.model[: list(member.model).index(norms[0])]
    with torch.no_grad():
        inputs = [before(member.header.normalization(batch)) for batch in images]
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in inputs]).mean(dim=0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in inputs]).mean(dim=0)
    torch.testing.assert_close(norms[0].running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms[0].running_var, variances, rtol=1e-4, atol=1e-5)
    assert [int(norm.num_batches_tracked) for norm in norms] == [len(images)] * len(norms)


@pytest.mark.parametrize(("batch", "batches"), [(500, [96]), (40, [40, 40, 16]), (95, [95]), (19, [19] * 5)])
def test_statistics_are_estimated_again_on_the_training_images(splits, tmp_path, monkeypatch, batch, batches):
    """A final batch of one image is skipped: 96 images are 95 + 1 or 5 · 19 + 1."""
    monkeypatch.setattr("fmcli.data.loader._MAX_EVALUATION_BATCH", batch)
    train(swa_recipe(0.5, augment={"rotate": 90, "erase": 1.0}), splits, tmp_path)
    images = torch.from_numpy(splits.train.images)[: sum(batches)].split(batches)
    assert_statistics_are_of(tmp_path, list(images))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_statistics_are_estimated_without_the_augmentation_of_worker_processes(splits, tmp_path):
    pipeline = [{"name": "GaussNoise", "args": {"p": 1.0}}]
    train(swa_recipe(0.5, 1, augment={"albumentations": pipeline}), splits, tmp_path)
    assert_statistics_are_of(tmp_path, [torch.from_numpy(splits.train.images)])


def test_statistics_of_a_bagged_member_use_its_own_sample(splits, tmp_path):
    train(swa_recipe(0.5, trainer={"bagging": 0.5}), splits, tmp_path)
    indices = torch.randint(N_TRAIN, (N_TRAIN // 2,), generator=Generators.seeded(0, 0, CPU).sample)
    assert_statistics_are_of(tmp_path, [torch.from_numpy(splits.train.images)[indices]])


def test_averaged_weights_are_validated_at_the_end(splits, tmp_path):
    history = train(swa_recipe(0.5), splits, tmp_path)
    predictions = load_predictions(tmp_path / VALIDATION_FILE)
    assert np.array_equal(predictions.logits, logits_of(tmp_path, splits.validation).numpy())
    labels = torch.from_numpy(splits.validation.labels)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(predictions.logits), labels)
    assert history[-1].validation_loss == pytest.approx(float(loss))
    assert history[-1].validation_accuracy == pytest.approx((predictions.choices == predictions.labels).mean())
    assert read_header(tmp_path).epochs == 4


@pytest.mark.parametrize("model", [SEQUENTIAL, SEQUENTIAL_WITHOUT_NOISE])
def test_averaging_works_without_batch_norm(splits, tmp_path, model):
    train(swa_recipe(0.25, model=model), splits, tmp_path / "swa")  # the average over one epoch is its weights
    train(swa_recipe(None, model=model), splits, tmp_path / "plain")
    assert same_tensors(weights(tmp_path / "swa"), weights(tmp_path / "plain"))


WITH_DROPOUT = {
    "family": "sequential",
    "layers": [
        {"type": "flatten"},
        {"type": "dropout", "rate": 0.3},
        {"type": "dense", "units": 8},
        {"type": "batch-norm", "activation": "relu"},
        {"type": "dense", "units": 3},
    ],
}


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
@pytest.mark.parametrize("tables", [{}, {"model": WITH_DROPOUT, "trainer": {"bagging": 0.7}}], ids=["plain", "dropout"])
def test_averaging_resumes_exactly(splits, tmp_path, epochs, tables):
    recipe = swa_recipe(0.6, 5, **tables)  # averages epochs 3, 4 and 5
    assert_resumes_exactly(recipe, splits, tmp_path, StopAt(EpochFinished, epochs))


def test_averaging_can_be_stopped_several_times(splits, tmp_path):
    stops = [StopAt(EpochFinished, 2), StopAt(EpochFinished, 1), StopAt(StepFinished, 4)]
    assert_resumes_exactly(swa_recipe(0.6, 5, augment={"flip": 0.5}), splits, tmp_path, *stops)


# --- files ------------------------------------------------------------------------------------------------


def test_files_of_a_finished_member(splits, tmp_path):
    history = train(small_recipe(), splits, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([MODEL_FILE, HISTORY_FILE, VALIDATION_FILE])
    assert read_history(tmp_path) == history
    lines = [json.loads(line) for line in (tmp_path / HISTORY_FILE).read_text().splitlines()]
    assert all(line.pop("digest") for line in lines)
    assert lines == [asdict(epoch) for epoch in history]


def test_saved_predictions_equal_the_saved_weights_predictions(splits, tmp_path):
    history = train(small_recipe(trainer={"weight_average": 0.9}), splits, tmp_path)
    predictions = load_predictions(tmp_path / VALIDATION_FILE)
    assert np.array_equal(predictions.logits, logits_of(tmp_path, splits.validation).numpy())
    assert np.array_equal(predictions.labels, splits.validation.labels)
    assert (predictions.member, predictions.split, predictions.group) == ("m1", "validation", "3")
    assert predictions.data_digest == splits.validation.digest
    accuracy = (predictions.choices == predictions.labels).mean()
    assert accuracy == pytest.approx(history[-1].validation_accuracy)


def test_averaged_weights_are_saved(splits, tmp_path):
    """With one step per epoch, runs of 1, 2 and 3 epochs end with the weights that are averaged."""
    steps = []
    for epochs in (1, 2, 3):
        train(small_recipe(trainer={"full_batch": True, "epochs": epochs}), splits, tmp_path / str(epochs))
        steps.append(weights(tmp_path / str(epochs)))
    train(small_recipe(trainer={"full_batch": True, "weight_average": 0.15}), splits, tmp_path / "average")
    averaged = weights(tmp_path / "average")
    # The decay is min(0.15, n / (n + 9)) after step n; 0.1 x 0.15 x 0.15 of the initial weights is left.
    shares = (0.9 * 0.15 * 0.15, 0.85 * 0.15, 0.85)
    for name in ("0.weight", "2.running_mean", "9.bias"):
        expected = sum(share * step[name] for share, step in zip(shares, steps, strict=True))
        torch.testing.assert_close(averaged[name], expected, atol=0.1 * 0.15 * 0.15, rtol=0)
        assert (averaged[name] - steps[-1][name]).abs().max() > 1e-4


def test_member_without_validation_images_has_no_validation_results(splits, tmp_path):
    history = train(small_recipe(), replace(splits, validation=None), tmp_path)
    assert {(epoch.validation_loss, epoch.validation_accuracy) for epoch in history} == {(None, None)}
    assert not (tmp_path / VALIDATION_FILE).exists()
    assert set(load_checkpoint(tmp_path, device=CPU).header.data_digests) == {"train", "test"}


def test_events_are_sent_in_order(splits, tmp_path):
    events = []
    train(small_recipe(trainer={"epochs": 2}), splits, tmp_path, reporter=events.append)
    start, *rest = events
    assert start == MemberStarted("m1", 2, 3, 1, start.parameters, "cpu", "fp32")
    assert [type(event) for event in rest] == [
        *([StepFinished] * 3), BatchPredicted, CheckpointSaved, EpochFinished,
        *([StepFinished] * 3), BatchPredicted, EpochFinished,
        CheckpointSaved, BatchPredicted, CheckpointSaved, MemberFinished,
    ]  # fmt: skip
    assert rest[-1] == MemberFinished("m1", tmp_path / MODEL_FILE)


# --- resuming ---------------------------------------------------------------------------------------------

RESUMABLE = {
    "adam": {"optimizer": {"name": "adam", "lr": 0.01}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "cosine", "warmup": 0.3}},
    "muon": {"optimizer": {"name": "muon", "lr": 0.01}},
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05}},
    "sgd-momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}},
    "weight-average": {"trainer": {"weight_average": 0.9}},
    "dropout-l2": {"model": SEQUENTIAL},
    "augment": {"augment": {"flip": 0.5, "shift": 1, "rotate": 15, "erase": 0.5}},
    "full-batch": {"trainer": {"full_batch": True}},
    "keep-best": {"trainer": {"keep": "best", "weight_average": 0.9}, "data": VALIDATED},
    "drop-last": {"trainer": {"batch_size": 40, "drop_last": True}},
    "patience": {"trainer": {"patience": 9}, "data": VALIDATED},
    "bagging": {"trainer": {"bagging": 0.8}, "augment": {"flip": 0.5}},
    "swa": {"trainer": {"swa": 0.7}},
    "cyclic": {"schedule": {"name": "cyclic", "cycles": 3}},
}


def assert_resumes_exactly(recipe, splits, tmp_path, *stops: StopAt, name: str = "broken") -> None:
    if not (tmp_path / "whole").exists():
        train(recipe, splits, tmp_path / "whole")
    whole, broken = read_history(tmp_path / "whole"), tmp_path / name
    for stop in stops:
        with pytest.raises(stop.error):
            train(recipe, splits, broken, resume=True, reporter=stop)
        assert not (broken / MODEL_FILE).exists()
    events = []
    history = train(recipe, splits, broken, resume=True, reporter=events.append)
    assert events[0].first_epoch > 1 or events[0].retrained or events[0].steps_done
    assert timeless(history) == timeless(whole)
    assert timeless(read_history(broken)) == timeless(whole)
    assert same_tensors(weights(broken), weights(tmp_path / "whole"))
    logits = [load_predictions(folder / VALIDATION_FILE).logits for folder in (broken, tmp_path / "whole")]
    assert np.array_equal(*logits)
    assert not (broken / STATE_FILE).exists()


@pytest.mark.parametrize("kind", RESUMABLE)
def test_resumed_run_equals_an_uninterrupted_run_bit_for_bit(splits, tmp_path, kind):
    assert_resumes_exactly(small_recipe(**RESUMABLE[kind]), splits, tmp_path, StopAt(EpochFinished, 1))


@pytest.mark.parametrize("steps", [4, 6, 9])
def test_killed_run_resumes_from_the_last_complete_epoch(splits, tmp_path, steps):
    recipe = small_recipe(optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.9}, trainer={"weight_average": 0.9})
    assert_resumes_exactly(recipe, splits, tmp_path, StopAt(StepFinished, steps))


@pytest.mark.parametrize("kind", RESUMABLE)
def test_run_stopped_within_an_epoch_continues_with_the_next_step(splits, tmp_path, kind):
    steps = 3 if kind == "full-batch" else 4 if kind == "drop-last" else 5
    stops = [StopAt(StepFinished, 2, StopRequest), StopAt(StepFinished, steps - 2, StopRequest)]
    assert_resumes_exactly(small_recipe(**RESUMABLE[kind]), splits, tmp_path, *stops)


@pytest.mark.parametrize("kind", ["keep-best", "weight-average", "swa", "cyclic", "dropout-l2"])
def test_run_can_be_stopped_at_every_event(splits, tmp_path, kind):
    """Stop at each event of the uninterrupted run, except the last, when the member is finished."""
    recipe, events = small_recipe(**RESUMABLE[kind]), []
    train(recipe, splits, tmp_path / "whole", reporter=events.append)
    for number in range(2, len(events) - 1):
        assert_resumes_exactly(recipe, splits, tmp_path, StopAt(object, number, StopRequest), name=str(number))


def test_run_can_be_stopped_while_validating_the_last_epoch(splits, tmp_path):
    recipe = small_recipe(trainer={"swa": 0.7, "epochs": 2})
    stops = [StopAt(BatchPredicted, 2, StopRequest), StopAt(BatchPredicted, 1, StopRequest)]
    assert_resumes_exactly(recipe, splits, tmp_path, *stops)


def test_state_is_saved_within_a_long_epoch(splits, tmp_path):
    events = []
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), splits, tmp_path / "broken", save_after=0, reporter=StopAt(StepFinished, 2))
    assert (tmp_path / "broken" / STATE_FILE).is_file()
    train(small_recipe(), splits, tmp_path / "broken", resume=True, reporter=events.append)
    assert (events[0].first_epoch, events[0].steps_done) == (1, 1)
    train(small_recipe(), splits, tmp_path / "whole")
    assert same_tensors(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


def test_retraining_can_be_stopped_within_its_first_epoch(splits, tmp_path):
    recipe = small_recipe(trainer={"keep": "retrained"}, data=VALIDATED)
    stops = [StopAt(StepFinished, 11, StopRequest)]  # after three epochs of three steps
    assert_resumes_exactly(recipe, splits, tmp_path, *stops)


def test_run_can_be_stopped_several_times(splits, tmp_path):
    recipe = small_recipe(augment={"shift": 1}, trainer={"weight_average": 0.9})
    stops = [StopAt(EpochFinished, 1), StopAt(StepFinished, 2), StopAt(EpochFinished, 1), StopAt(EpochFinished, 1)]
    assert_resumes_exactly(recipe, splits, tmp_path, *stops)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_resumption_with_worker_processes(splits, tmp_path):
    pipeline = [{"name": "Affine", "args": {"rotate": (-20, 20), "p": 1.0}}, {"name": "GaussNoise"}]
    recipe = small_recipe(augment={"albumentations": pipeline}, trainer={"epochs": 2, "batch_size": 32})
    assert_resumes_exactly(recipe, splits, tmp_path, StopAt(EpochFinished, 1), StopAt(StepFinished, 2, StopRequest))


def test_short_epochs_are_saved_rarely_enough_to_limit_the_time(splits, tmp_path, monkeypatch):
    """On a fake clock, saving takes a second, each epoch takes a second, and everything else takes no time."""
    now = 0.0

    def perf_counter():
        nonlocal now
        now += 1e-6
        return now

    def advance(function):
        def slowly(*arguments):
            nonlocal now
            now += 1.0
            return function(*arguments)

        return slowly

    monkeypatch.setattr(saving, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(saving, "MAX_SAVING_SHARE", 0.25)  # the next save is four seconds later, after four epochs
    monkeypatch.setattr(saving, "save_state", advance(saving.save_state))
    monkeypatch.setattr(Validator, "validate", advance(Validator.validate))
    recipe = small_recipe(trainer={"epochs": 11})
    saved_at: list[int] = []
    epochs = 0

    def listen(event):
        nonlocal epochs
        epochs += isinstance(event, EpochFinished)
        if isinstance(event, CheckpointSaved) and event.path.name == STATE_FILE:
            saved_at.append(epochs)
            assert len(read_history(tmp_path / "run")) == min(epochs + 1, 11)

    train(recipe, splits, tmp_path / "run", reporter=listen)
    assert saved_at == [0, 4, 8, 11]  # during the first, fifth and ninth epoch, and at the end
    assert len(read_history(tmp_path / "run")) == 11

    with pytest.raises(KeyboardInterrupt):
        train(recipe, splits, tmp_path / "killed", reporter=StopAt(EpochFinished, 7))
    events = []
    train(recipe, splits, tmp_path / "killed", resume=True, reporter=events.append)
    assert next(event.first_epoch for event in events if isinstance(event, MemberStarted)) == 6
    assert same_tensors(weights(tmp_path / "run"), weights(tmp_path / "killed"))
    assert timeless(read_history(tmp_path / "killed")) == timeless(read_history(tmp_path / "run"))


class DyingAugmentation:
    """Augments nothing, and ends the worker process for some seeds."""

    def __init__(self, specs, input_shape):
        pass

    def __call__(self, images, seed):
        time.sleep(0.05)  # so that both processes have started other batches
        if seed % 3 == 0:
            os._exit(3)
        return images


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_dead_worker_process_is_an_error_with_a_hint_about_shared_memory(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "AlbumentationsAugment", DyingAugmentation)
    recipe = small_recipe(augment={"albumentations": [{"name": "HorizontalFlip"}]}, trainer={"batch_size": 8})
    with pytest.raises(FmcliError, match=r"a worker process .* failed: DataLoader worker") as caught:
        train(recipe, splits, tmp_path)
    assert "--shm-size" in hint_of(caught.value)


def test_other_runtime_errors_of_a_step_are_not_explained(splits, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train(small_recipe(), splits, tmp_path)


def test_resuming_without_a_state_starts_from_scratch(splits, tmp_path):
    train(small_recipe(), splits, tmp_path / "fresh")
    train(small_recipe(), splits, tmp_path / "resumed", resume=True)
    assert same_tensors(weights(tmp_path / "fresh"), weights(tmp_path / "resumed"))


def test_finished_member_is_not_trained_again(splits, tmp_path):
    history = train(small_recipe(), splits, tmp_path)
    content = (tmp_path / MODEL_FILE).read_bytes()
    events = []
    assert train(small_recipe(), splits, tmp_path, resume=True, reporter=events.append) == history
    assert events == [MemberFinished("m1", tmp_path / MODEL_FILE, already_trained=True)]
    assert (tmp_path / MODEL_FILE).read_bytes() == content


@pytest.mark.parametrize("finished", [True, False])
def test_different_recipe_is_refused(splits, tmp_path, finished):
    if finished:
        train(small_recipe(), splits, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe(), splits, tmp_path, reporter=StopAt(EpochFinished, 1))
    with pytest.raises(CheckpointError, match="a different recipe") as caught:
        train(small_recipe(optimizer={"lr": 0.5}), splits, tmp_path, resume=True)
    assert "--overwrite" in hint_of(caught.value)


def test_different_images_are_refused(splits, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), splits, tmp_path, reporter=StopAt(EpochFinished, 1))
    with pytest.raises(CheckpointError, match="different train images"):
        train(small_recipe(), replace(splits, train=draw_thirds(N_TRAIN, 9)), tmp_path, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "a checkpoint"])
def test_damaged_state_is_refused(splits, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(), splits, tmp_path, reporter=StopAt(EpochFinished, 1))
    path = tmp_path / STATE_FILE
    content = path.read_bytes()
    if damage == "a checkpoint":
        train(small_recipe(), splits, tmp_path / "other")
        content = (tmp_path / "other" / MODEL_FILE).read_bytes()
    elif damage == "flipped":
        content = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    else:
        content = content[: len(content) // 2] if damage == "truncated" else b""
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        train(small_recipe(), splits, tmp_path, resume=True)


# --- errors -----------------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_is_an_error_with_a_hint(splits, tmp_path):
    recipe = small_recipe(model=SEQUENTIAL_WITHOUT_NOISE, optimizer={"name": "sgd", "lr": 1e38})
    with pytest.raises(FmcliError, match=r"m1: .*loss of step 2 is (nan|inf) in epoch 1 at") as caught:
        train(recipe, splits, tmp_path)
    assert "optimizer.lr" in hint_of(caught.value)
    assert not (tmp_path / MODEL_FILE).exists()


def test_state_of_the_last_good_epoch_is_kept_after_divergence(splits, tmp_path, monkeypatch):
    def later(self, images, labels, lr, step=Learner.step):
        loss, logits = step(self, images, labels, lr)
        return (loss * math.nan if lr < 5e-3 else loss), logits

    monkeypatch.setattr("fmcli.training.learner.Learner.step", later)
    recipe = small_recipe(schedule={"name": "step", "every": 2, "gamma": 0.1}, optimizer={"lr": 1e-2})
    with pytest.raises(FmcliError, match=r"loss of step 1 is nan in epoch 3 at learning rate 0\.001"):
        train(recipe, splits, tmp_path)
    assert len(load_state(tmp_path / STATE_FILE).history) == 2
    assert len(read_history(tmp_path)) == 2


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("cycles", [1, 2])
def test_weights_that_are_not_finite_are_never_saved(splits, tmp_path, validated, cycles):
    """The loss of the only step is finite, but the weights after it are not."""
    recipe = small_recipe(
        model=SEQUENTIAL_WITHOUT_NOISE,
        optimizer={"name": "sgd", "lr": 1e39},
        schedule={"name": "cyclic", "cycles": cycles},
        trainer={"epochs": cycles, "full_batch": True, "keep": "snapshots"},
    )
    with pytest.raises(FmcliError) as caught:
        train(recipe, splits if validated else replace(splits, validation=None), tmp_path)
    assert "optimizer.lr" in hint_of(caught.value)
    assert list(tmp_path.rglob(MODEL_FILE)) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_too_little_memory_is_a_device_error(splits, tmp_path, monkeypatch, error):
    def backward(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with pytest.raises(DeviceError, match="too little memory for member m1") as caught:
        train(small_recipe(), splits, tmp_path)
    assert "trainer.batch_size" in hint_of(caught.value)


def test_other_runtime_errors_are_raised_unchanged(splits, tmp_path, monkeypatch):
    def backward(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with pytest.raises(RuntimeError, match="a bug"):
        train(small_recipe(), splits, tmp_path)


def test_folder_that_cannot_be_written_to_is_an_error(splits, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FmcliError, match="cannot write"):
        train(small_recipe(), splits, tmp_path / "file" / "m1")


@pytest.mark.parametrize("content", [None, "not json\n", '{"member": "m1"}\n', "[]\n", "\xff"])
def test_damaged_history_is_a_checkpoint_error(tmp_path, content):
    if content is not None:
        (tmp_path / HISTORY_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=HISTORY_FILE):
        read_history(tmp_path)


def test_metrics_of_an_epoch_are_plausible(splits, tmp_path):
    for epoch in train(small_recipe(), splits, tmp_path):
        assert 0 <= epoch.train_accuracy <= 1
        assert 0 <= epoch.validation_accuracy <= 1
        assert epoch.seconds > 0
        assert epoch.images_per_second > 0
        assert math.isfinite(epoch.validation_loss)
