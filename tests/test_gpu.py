"""Tests on an NVIDIA GPU: `pytest -m gpu`. Other machines skip them."""

import numpy as np
import pytest
import torch

from fmcli.checkpoints.checkpoint import load_checkpoint
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.data import DeviceLoader, ImageSet, Splits
from fmcli.data.augment import affine, erase, shift
from fmcli.errors import DeviceError
from fmcli.events import EpochFinished
from fmcli.networks.inference import disable_tf32, predict_logits
from fmcli.recipe import Recipe, resolve_recipe
from fmcli.training import train_member
from fmcli.training.run import train_run
from tests.helpers import StopAt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def drawn_splits(n: int = 1024) -> Splits:
    """Return images of four classes: the index of the bright quadrant."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, n)
    images = generator.integers(0, 80, (n, 1, 16, 16)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 100
    names = ("a", "b", "c", "d")
    everything = ImageSet(images, labels.astype(np.int64), names)
    return Splits(everything.subset(slice(256, None)), everything.subset(slice(256)), everything.subset(slice(256)))


def recipe(precision: str, augment: dict[str, object] | None = None, **trainer: object) -> Recipe:
    return resolve_recipe(
        {
            "data": {"source": "idx:drawn"},
            "augment": augment or {},
            "model": {"family": "kernel-cnn", "form": "pooled", "kernel_size": 3, "widths": [16, 32]},
            "trainer": {"epochs": 3, "batch_size": 64, "precision": precision, **trainer},
        },
        name="drawn",
    )


def test_loss_trajectories_of_cpu_and_gpu_agree_in_fp32(tmp_path):
    histories = [
        train_member(recipe("fp32"), "m1", drawn_splits(), tmp_path / device.type, device=device)
        for device in (CPU, GPU)
    ]
    on_cpu, on_gpu = ([epoch.train_loss for epoch in history] for history in histories)
    np.testing.assert_allclose(on_cpu, on_gpu, rtol=0.02)


def test_bf16_is_as_accurate_as_fp32(tmp_path):
    accuracies = {
        precision: train_member(recipe(precision), "m1", drawn_splits(), tmp_path / precision, device=GPU)[-1]
        for precision in ("fp32", "bf16")
    }
    assert abs(accuracies["fp32"].validation_accuracy - accuracies["bf16"].validation_accuracy) <= 0.02


def test_augmentation_is_the_same_for_the_same_draws():
    images = torch.randint(0, 256, (8, 1, 20, 14)).float()
    degrees, right, down = torch.linspace(-20, 20, 8), torch.linspace(-3, 3, 8), torch.linspace(2, -2, 8)
    expected = affine(images, degrees, right, down)
    found = affine(images.to(GPU), degrees.to(GPU), right.to(GPU), down.to(GPU))
    torch.testing.assert_close(found.cpu(), expected, atol=0.02, rtol=0)
    steps = torch.arange(8) - 4
    assert torch.equal(shift(images.to(GPU), steps.to(GPU), steps.to(GPU)).cpu(), shift(images, steps, steps))
    box = [torch.full((8,), side) for side in (1.0, 2.0, 5.0, 6.0)]
    noise = torch.zeros_like(images, dtype=torch.uint8)
    on_gpu = erase(images.to(GPU), *(side.to(GPU) for side in box), noise.to(GPU))
    assert torch.equal(on_gpu.cpu(), erase(images, *box, noise))


@pytest.mark.parametrize(("trained_on", "used_on"), [(CPU, GPU), (GPU, CPU)])
def test_checkpoints_move_between_devices(tmp_path, trained_on, used_on):
    splits = drawn_splits()
    train_member(recipe("fp32"), "m1", splits, tmp_path, device=trained_on)
    images = torch.tensor(splits.test.images)
    logits = []
    for device in (trained_on, used_on):
        member = load_checkpoint(tmp_path / MODEL_FILE, device=device)
        logits.append(predict_logits(member.model, [images.to(device)], member.header.normalization).cpu())
    torch.testing.assert_close(logits[0], logits[1], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_training_resumes(tmp_path, precision):
    whole = train_member(recipe(precision), "m1", drawn_splits(), tmp_path / "whole", device=GPU)
    with pytest.raises(KeyboardInterrupt):
        train_member(
            recipe(precision), "m1", drawn_splits(), tmp_path / "two", device=GPU, reporter=StopAt(EpochFinished, 2)
        )
    resumed = train_member(recipe(precision), "m1", drawn_splits(), tmp_path / "two", device=GPU, resume=True)
    losses = [[epoch.train_loss for epoch in history] for history in (whole, resumed)]
    np.testing.assert_allclose(*losses, rtol=0.05)


@pytest.mark.parametrize(
    "options",
    [{"swa": 0.5}, {"weight_average": 0.9}, {}, {"augment": {"albumentations": [{"name": "GaussNoise"}]}}],
    ids=["swa", "average", "plain", "albumentations"],
)
def test_training_with_cuda_graphs_works(tmp_path, options):
    history = train_member(recipe("bf16", cuda_graph=True, **options), "m1", drawn_splits(), tmp_path, device=GPU)
    assert history[-1].validation_accuracy > 0.9


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_parallel_members_learn_the_same_as_one_at_a_time(tmp_path, drawn_images, cuda_graph):
    """Members take turns on their own streams, so memory of one must neither reach another nor be freed early."""
    several = resolve_recipe(
        {
            "data": {"source": f"idx:{drawn_images}"},
            "model": {"family": "kernel-cnn", "form": "pooled", "kernel_size": 3},
            "optimizer": {"name": "muon"},
            "trainer": {"batch_size": 16, "precision": "fp32", "cuda_graph": cuda_graph},
            "members": [
                {"name": f"m{epochs}", "model": {"widths": [16, width]}, "trainer": {"epochs": epochs}}
                for epochs, width in ((2, 32), (8, 128), (5, 64), (6, 256))
            ],
        },
        name="several",
    )
    alone, in_parallel = (train_run(several, tmp_path / str(jobs), device=GPU, jobs=jobs) for jobs in (1, 2))
    for name, history in alone.items():
        losses = [[epoch.train_loss for epoch in epochs] for epochs in (history, in_parallel[name])]
        np.testing.assert_allclose(*losses, rtol=0.02)


def test_streamed_batches_equal_batches_on_the_device(monkeypatch):
    images = drawn_splits().train

    def epoch() -> list[tuple[torch.Tensor, torch.Tensor]]:
        loader = DeviceLoader(images, batch_size=50, device=GPU)
        batches = []
        for batch, labels in loader.epoch(torch.Generator().manual_seed(0)):
            torch.cuda._sleep(10_000_000)  # the next batches are copied before the training stream reaches this one
            batches.append((batch + 1, labels))
        return batches

    kept = epoch()
    monkeypatch.setattr("fmcli.data.loader._must_stream", lambda *_: True)
    for one, other in zip(kept, epoch(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_too_little_memory_is_reported(tmp_path):
    free = torch.cuda.mem_get_info()[0]
    used = torch.empty(int(free * 0.98), dtype=torch.uint8, device=GPU)
    try:
        with pytest.raises(DeviceError, match="too little memory"):
            train_member(recipe("fp32", full_batch=True), "m1", drawn_splits(1 << 18), tmp_path, device=GPU)
    finally:
        del used
        torch.cuda.empty_cache()


def test_fp32_convolves_in_fp32():
    disable_tf32()
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(shape, generator=generator) for shape in ((8, 32, 16, 16), (32, 32, 3, 3)))
    found = torch.conv2d(images.to(GPU), weights.to(GPU)).cpu()
    exact = torch.conv2d(images.double(), weights.double()).float()
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)  # the error of TF32 is about 1e-2
