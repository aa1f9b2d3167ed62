"""Recorded and replayed steps: on the CPU with a simulation of CUDA graphs, and on a GPU."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch

from fmcli.data import Normalization
from fmcli.networks.tracing import trace_network
from fmcli.recipe import resolve_recipe
from fmcli.recipe.trainer import TrainerSpec
from fmcli.training.cuda_graph import CudaGraphRecorder, cudnn_benchmark
from fmcli.training.learner import Learner, choose_recorder
from fmcli.training.rng import Generators

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
OPTIMIZERS = {name: {"name": name} for name in ("adam", "adamw", "muon", "sgd")} | {
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
}


def new_learner(device=CPU, *, recorder=None, optimizer="muon", bf16=False, **trainer):
    recipe = resolve_recipe(
        {
            "data": {"source": "idx:drawn"},
            "augment": {"flip": 0.5, "shift": 1, "erase": 0.5},
            "model": {
                "family": "sequential",
                "layers": [
                    {"type": "conv", "filters": 4, "kernel_size": 3, "l2": 0.01},
                    {"type": "batch-norm", "activation": "relu"},
                    {"type": "flatten"},
                    {"type": "dropout", "rate": 0.3},
                    {"type": "dense", "units": 3},
                ],
            },
            "optimizer": OPTIMIZERS[optimizer],
            "trainer": {"weight_average": 0.9, **trainer},
        },
        name="drawn",
    )
    learner = Learner(
        recipe.members[0],
        trace_network(recipe.members[0].model, SHAPE, 3),
        normalization=Normalization((90.0,), (60.0,)),
        generators=Generators.seeded(0, 0, device),
        device=device,
        bf16=bf16,
        recorder=recorder,
    )
    if recorder is not None:
        recorder.learner = learner
    return learner


class FakeRecorder:
    """Simulates CUDA graphs on the CPU.

    Recording computes nothing. A replay repeats the recorded step with the values that the host had at that time, for
    example the learning rate, and does not see gradients in other memory.
    """

    def __init__(self):
        self.learner = None  # the learner whose steps are recorded
        self.calls = []

    def warm_up(self, compute):
        self.calls.append("warm-up")
        return compute()

    def record(self, compute):
        self.calls.append("record")
        before = {name: tensor.clone() for name, tensor in self.learner.state().items()}
        output = tuple(tensor.clone() for tensor in compute())
        for name, tensor in self.learner.state().items():
            tensor.copy_(before[name])  # in place, because earlier recordings use this memory, too
        self.learner.generators.load(before)
        groups = self.learner._optimizer.param_groups
        recorded = [dict(group) for group in groups]

        def replay():
            self.calls.append("replay")
            for parameter in self.learner.model.parameters():
                parameter.grad = None
            for group, values in zip(groups, recorded, strict=True):
                group.update(values)
            for kept, new in zip(output, compute(), strict=True):
                kept.copy_(new)

        return replay, output


class FailingRecorder(FakeRecorder):
    """Fails to record."""

    def record(self, compute):
        raise RuntimeError("operation not permitted when stream is capturing")


def batches(sizes, device):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randint(0, 256, (size, *SHAPE), generator=generator, dtype=torch.uint8)
        yield images.to(device), torch.randint(0, 3, (size,), generator=generator).to(device)


def train(learner, sizes):
    learner.model.train()
    return [
        tuple(tensor.clone() for tensor in learner.step(images, labels, 0.1 / (index + 1)))
        for index, (images, labels) in enumerate(batches(sizes, next(learner.model.parameters()).device))
    ]


def assert_same(ours, theirs):
    assert all(
        torch.equal(mine, yours)
        for one, other in zip(*ours, strict=True)
        for mine, yours in zip(one, other, strict=True)
    )
    first, second = (learner.state() for learner in theirs)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize(
    "options", [*({"optimizer": name} for name in OPTIMIZERS), {"clip_norm": 0.1}, {"bf16": True}], ids=str
)
def test_replayed_steps_equal_eager_steps(options):
    sizes = [16, 16, 16, 16, 5] * 6  # the last batch of an epoch is smaller
    recorder = FakeRecorder()
    computed, replayed = new_learner(recorder=FailingRecorder(), **options), new_learner(recorder=recorder, **options)
    with pytest.warns(UserWarning, match="each kernel is launched separately"):
        expected = train(computed, sizes)
    assert_same((expected, train(replayed, sizes)), (computed, replayed))
    assert recorder.calls == [
        *["warm-up"] * 3, *["record", "replay"], "warm-up", *["replay"] * 4, "warm-up", *["replay"] * 4, "warm-up",
        *["replay"] * 4, *["record", "replay"], *["replay"] * 10,
    ]  # fmt: skip


class FailingForSmallBatches(FakeRecorder):
    """Fails to record a smaller batch."""

    def record(self, compute):
        launch, output = super().record(compute)
        if len(output[1]) < 16:
            self.calls.append("failed")
            raise RuntimeError("operation not permitted when stream is capturing")
        return launch, output


def test_recordings_are_not_used_after_one_has_failed():
    sizes = [*[16] * 5, *[5] * 4, *[16] * 2, *[7] * 5]
    recorder = FailingForSmallBatches()
    learners = [new_learner(recorder=FailingRecorder()), new_learner(recorder=recorder)]
    with pytest.warns(UserWarning, match="each kernel is launched separately"):
        outputs = [train(learner, sizes) for learner in learners]
    assert_same(outputs, learners)
    assert recorder.calls[recorder.calls.index("failed") :] == ["failed"]


def test_learner_with_recorder_is_in_no_reference_cycle():
    recorder = FakeRecorder()
    learner = new_learner(recorder=recorder)
    recorder.learner = None
    train(learner, [16] * 3)
    reference = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_continues_if_recording_fails(optimizer):
    """The results equal eager steps, except for the rounding of the learning rate."""
    sizes = [16] * 6
    eager, failed = new_learner(optimizer=optimizer), new_learner(optimizer=optimizer, recorder=FailingRecorder())
    with pytest.warns(UserWarning, match="each kernel is launched separately.*not permitted"):
        found = train(failed, sizes)
    for one, other in zip(found, train(eager, sizes), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("cuda_graph", "device", "expected"), [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False)]
)
def test_steps_are_recorded_only_if_the_recipe_asks_for_it_on_a_gpu(cuda_graph, device, expected):
    generators = Generators.seeded(0, 0, CPU)
    recorder = choose_recorder(TrainerSpec(cuda_graph=cuda_graph), torch.device(device), generators)
    assert isinstance(recorder, CudaGraphRecorder) == expected


def test_a_learner_uses_the_recorder_that_the_recipe_asks_for(monkeypatch):
    recorder = FakeRecorder()
    monkeypatch.setattr(
        "fmcli.training.learner.choose_recorder", lambda trainer, *_: recorder if trainer.cuda_graph else None
    )
    recorded, eager = new_learner(cuda_graph=True), new_learner()
    recorder.learner = recorded
    train(eager, [16] * 6)
    assert recorder.calls == []
    train(recorded, [16] * 6)
    assert recorder.calls[3:] == ["record", "replay", "replay", "replay"]


@pytest.mark.parametrize("before", [False, True])
def test_cudnn_benchmark_restores_the_setting(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with suppress(MemoryError), cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
        raise MemoryError
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_equal_single_kernels(optimizer, bf16):
    sizes = [16, 16, 16, 16, 5] * 6
    replayed, computed = (
        new_learner(torch.device("cuda"), recorder=recorder, optimizer=optimizer, bf16=bf16, cuda_graph=True)
        for recorder in (None, FailingRecorder())
    )
    with pytest.warns(UserWarning, match="each kernel is launched separately"):
        expected = train(computed, sizes)
    for found, wanted in zip(train(replayed, sizes), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_training_continues_if_a_capture_fails(monkeypatch):
    """The generators continue as if no capture had been tried, and the stream is the same as before."""
    sizes = [16] * 8
    learners = [
        new_learner(torch.device("cuda"), recorder=recorder, cuda_graph=True) for recorder in (FailingRecorder(), None)
    ]
    failing = learners[1]
    update_weights = failing._update_weights

    def wait_during_capture(images, labels):
        output = update_weights(images, labels)
        if torch.cuda.is_current_stream_capturing():
            output[0].item()
        return output

    monkeypatch.setattr(failing, "_update_weights", wait_during_capture)
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="each kernel is launched separately"):
        expected, found = (train(learner, sizes) for learner in learners)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
    assert torch.cuda.current_stream() == stream
