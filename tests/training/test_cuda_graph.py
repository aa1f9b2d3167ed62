"""Steps that are recorded and replayed: by a stand-in for CUDA graphs, on the CPU."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch

from fmcli.data import Normalization
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
        SHAPE,
        3,
        normalization=Normalization((90.0,), (60.0,)),
        generators=Generators.seeded(0, 0, device),
        device=device,
        bf16=bf16,
        recorder=recorder,
    )
    if recorder is not None:
        recorder.learner = learner
    return learner


class StandIn:
    """Does what a CUDA graph does: recording computes nothing, and a replay knows what was recorded only.

    Neither what the host said since then, as the learning rate, nor gradients that lie elsewhere.
    """

    def __init__(self):
        self.learner = None  # whose steps are recorded
        self.said = []

    def warm_up(self, compute):
        self.said.append("warm-up")
        return compute()

    def record(self, compute):
        self.said.append("record")
        before = {name: tensor.clone() for name, tensor in self.learner.state().items()}
        answers = tuple(answer.clone() for answer in compute())
        for name, tensor in self.learner.state().items():
            tensor.copy_(before[name])  # in place, where earlier recordings know it, too
        self.learner.generators.load(before)
        groups = self.learner._optimizer.param_groups
        said = [dict(group) for group in groups]

        def replay():
            self.said.append("replay")
            for parameter in self.learner.model.parameters():
                parameter.grad = None
            for group, values in zip(groups, said, strict=True):
                group.update(values)
            for kept, new in zip(answers, compute(), strict=True):
                kept.copy_(new)

        return replay, answers


class Refusing(StandIn):
    """Cannot record."""

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
        tuple(answer.clone() for answer in learner.step(images, labels, 0.1 / (place + 1)))
        for place, (images, labels) in enumerate(batches(sizes, next(learner.model.parameters()).device))
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
def test_replayed_steps_are_those_that_are_computed(options):
    sizes = [16, 16, 16, 16, 5] * 6  # the last batch of an epoch is smaller
    recorder = StandIn()
    computed, replayed = new_learner(recorder=Refusing(), **options), new_learner(recorder=recorder, **options)
    with pytest.warns(UserWarning, match="launch single kernels"):
        expected = train(computed, sizes)
    assert_same((expected, train(replayed, sizes)), (computed, replayed))
    assert recorder.said == [
        *["warm-up"] * 3, *["record", "replay"], "warm-up", *["replay"] * 4, "warm-up", *["replay"] * 4, "warm-up",
        *["replay"] * 4, *["record", "replay"], *["replay"] * 10,
    ]  # fmt: skip


class RefusingSmall(StandIn):
    """Cannot record a smaller batch."""

    def record(self, compute):
        launch, answers = super().record(compute)
        if len(answers[1]) < 16:
            self.said.append("refused")
            raise RuntimeError("operation not permitted when stream is capturing")
        return launch, answers


def test_nothing_recorded_is_used_any_more_once_a_recording_is_refused():
    sizes = [*[16] * 5, *[5] * 4, *[16] * 2, *[7] * 5]
    recorder = RefusingSmall()
    learners = [new_learner(recorder=Refusing()), new_learner(recorder=recorder)]
    with pytest.warns(UserWarning, match="launch single kernels"):
        answers = [train(learner, sizes) for learner in learners]
    assert_same(answers, learners)
    assert recorder.said[recorder.said.index("refused") :] == ["refused"]


def test_a_learner_that_records_is_gone_when_nobody_needs_it():
    recorder = StandIn()
    learner = new_learner(recorder=recorder)
    recorder.learner = None
    train(learner, [16] * 3)
    here = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert here() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_goes_on_where_recording_is_refused(optimizer):
    """It learns what one learns that never records, but for how the learning rate is rounded."""
    sizes = [16] * 6
    computed, refused = new_learner(optimizer=optimizer), new_learner(optimizer=optimizer, recorder=Refusing())
    with pytest.warns(UserWarning, match="launch single kernels.*not permitted"):
        found = train(refused, sizes)
    for one, other in zip(found, train(computed, sizes), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("cuda_graph", "device", "expected"), [(True, "cuda", True), (False, "cuda", False), (True, "cpu", False)]
)
def test_steps_are_recorded_only_if_the_recipe_asks_for_it_on_a_gpu(cuda_graph, device, expected):
    generators = Generators.seeded(0, 0, CPU)
    recorder = choose_recorder(TrainerSpec(cuda_graph=cuda_graph), torch.device(device), generators)
    assert isinstance(recorder, CudaGraphRecorder) == expected


def test_a_learner_uses_the_recorder_that_the_recipe_asks_for(monkeypatch):
    recorder = StandIn()
    monkeypatch.setattr(
        "fmcli.training.learner.choose_recorder", lambda trainer, *_: recorder if trainer.cuda_graph else None
    )
    recorded, eager = new_learner(cuda_graph=True), new_learner()
    recorder.learner = recorded
    train(eager, [16] * 6)
    assert recorder.said == []
    train(recorded, [16] * 6)
    assert recorder.said[3:] == ["record", "replay", "replay", "replay"]


@pytest.mark.parametrize("before", [False, True])
def test_kernels_are_measured_while_warming_up_alone(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with suppress(MemoryError), cudnn_benchmark():
        assert torch.backends.cudnn.benchmark
        raise MemoryError
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_compute_what_single_kernels_do(optimizer, bf16):
    sizes = [16, 16, 16, 16, 5] * 6
    replayed, computed = (
        new_learner(torch.device("cuda"), recorder=recorder, optimizer=optimizer, bf16=bf16, cuda_graph=True)
        for recorder in (None, Refusing())
    )
    with pytest.warns(UserWarning, match="launch single kernels"):
        expected = train(computed, sizes)
    for found, wanted in zip(train(replayed, sizes), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_training_goes_on_where_a_capture_fails(monkeypatch):
    """The generators draw on as if nothing had been tried, and the stream is the one of before."""
    sizes = [16] * 8
    learners = [
        new_learner(torch.device("cuda"), recorder=recorder, cuda_graph=True) for recorder in (Refusing(), None)
    ]
    failing = learners[1]
    learn = failing._update_weights

    def wait_within_a_capture(images, labels):
        answers = learn(images, labels)
        if torch.cuda.is_current_stream_capturing():
            answers[0].item()
        return answers

    monkeypatch.setattr(failing, "_update_weights", wait_within_a_capture)
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="launch single kernels"):
        expected, found = (train(learner, sizes) for learner in learners)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
    assert torch.cuda.current_stream() == stream
