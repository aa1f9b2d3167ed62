"""Steps that are recorded and replayed: by a stand-in for CUDA graphs, on the CPU."""

import gc
import weakref

import pytest
import torch

from fmcli.data import Normalization
from fmcli.generators import Generators
from fmcli.recipe import resolve_recipe
from fmcli.trainer.learner import Learner

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def new_learner(device=CPU, *, bf16=False, **trainer):
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
            "optimizer": {"name": "muon"},
            "trainer": {"weight_average": 0.9, **trainer},
        },
        name="drawn",
    )
    return Learner(
        recipe.members[0],
        SHAPE,
        3,
        normalization=Normalization((90.0,), (60.0,)),
        generators=Generators.seeded(0, 0, device),
        device=device,
        bf16=bf16,
    )


class StandIn:
    """Does what a CUDA graph does: recording computes nothing, and a replay knows no memory but what was recorded.

    Args:
        learner: Whose steps are recorded.
    """

    def __init__(self, learner):
        self.learner = learner
        self.said = []

    def warm_up(self, compute):
        self.said.append("warm-up")
        return compute()

    def record(self, compute):
        self.said.append("record")
        before = {name: tensor.clone() for name, tensor in self.learner.state().items()}
        answers = tuple(answer.clone() for answer in compute())
        parameters = list(self.learner.model.parameters())
        gradients = [parameter.grad for parameter in parameters]
        self.learner.load(before, self.learner.updates)

        def replay():
            self.said.append("replay")
            for kept, new in zip(answers, compute(), strict=True):
                kept.copy_(new)
            for kept, parameter in zip(gradients, parameters, strict=True):
                kept.copy_(parameter.grad)
                parameter.grad = None  # what reads it elsewhere than in the graph's memory, fails

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
        for place, (images, labels) in enumerate(batches(sizes, learner.device))
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


@pytest.mark.parametrize("trainer", [{}, {"clip_norm": 0.1}, {"bf16": True}])
def test_replayed_steps_are_those_that_are_computed(trainer):
    sizes = [16, 16, 16, 16, 5] * 6  # the last batch of an epoch is smaller
    computed, replayed = new_learner(**trainer), new_learner(**trainer)
    recorder = StandIn(replayed)
    replayed.record_steps(recorder)
    assert_same((train(computed, sizes), train(replayed, sizes)), (computed, replayed))
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
    computed, refused = new_learner(), new_learner()
    recorder = RefusingSmall(refused)
    refused.record_steps(recorder)
    with pytest.warns(UserWarning, match="launched kernel by kernel"):
        answers = train(refused, sizes)
    assert_same((train(computed, sizes), answers), (computed, refused))
    assert recorder.said[recorder.said.index("refused") :] == ["refused"]


def test_a_learner_that_records_is_gone_when_nobody_needs_it():
    learner = new_learner()
    learner.record_steps(StandIn(learner))
    learner._graph._recorder.learner = None  # the stand-in's own
    train(learner, [16] * 3)
    here = weakref.ref(learner)
    gc.disable()
    try:
        del learner
        assert here() is None
    finally:
        gc.enable()


def test_a_training_goes_on_where_recording_is_refused():
    sizes = [16] * 6
    computed, refused = new_learner(), new_learner()
    refused.record_steps(Refusing(refused))
    with pytest.warns(UserWarning, match="launched kernel by kernel.*not permitted"):
        answers = train(refused, sizes)
    assert_same((train(computed, sizes), answers), (computed, refused))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_compute_what_single_kernels_do(bf16):
    sizes = [16, 16, 16, 16, 5] * 6
    replayed, computed = (new_learner(torch.device("cuda"), bf16=bf16) for _ in range(2))
    computed.record_steps(Refusing(computed))
    with pytest.warns(UserWarning, match="launched kernel by kernel"):
        expected = train(computed, sizes)
    for found, wanted in zip(train(replayed, sizes), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_training_goes_on_where_a_capture_fails(monkeypatch):
    """The generators draw on as if nothing had been tried, and the stream is the one of before."""
    sizes = [16] * 8
    learners = [new_learner(torch.device("cuda")) for _ in range(2)]
    computed, failing = learners
    computed.record_steps(Refusing(computed))
    gradients = failing._gradients

    def wait_within_a_capture(images, labels):
        answers = gradients(images, labels)
        if torch.cuda.is_current_stream_capturing():
            answers[0].item()
        return answers

    monkeypatch.setattr(failing, "_gradients", wait_within_a_capture)
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="launched kernel by kernel"):
        expected, found = (train(learner, sizes) for learner in learners)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
    assert torch.cuda.current_stream() == stream
