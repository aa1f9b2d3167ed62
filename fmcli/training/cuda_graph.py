"""A training step, recorded once on an NVIDIA GPU and launched as a whole from then on."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

_WARM_UP = 3  # calls before recording, in which libraries choose kernels and allocate what they keep
StepOutput = tuple[Tensor, Tensor]


class Recorder(Protocol):
    """How a device records."""

    def warm_up(self, compute: Callable[[], StepOutput]) -> StepOutput:
        """Compute, in the way that recording needs before it."""

    def record(self, compute: Callable[[], StepOutput]) -> tuple[Callable[[], None], StepOutput]:
        """Return what computes anew, from the same memory into the same, and that memory; nothing is computed yet."""


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: The GPU.
        generators: Those on it that are drawn from: each replay goes on with them.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._device, self._generators = device, generators

    def warm_up(self, compute: Callable[[], StepOutput]) -> StepOutput:
        """Compute on a stream aside, as PyTorch's notes on CUDA graphs ask for."""
        with torch.cuda.device(self._device), measured_convolutions():
            stream = torch.cuda.current_stream()
            aside = _stream_beside(stream)
            aside.wait_stream(stream)
            with torch.cuda.stream(aside):
                answers = compute()
            stream.wait_stream(aside)
        return answers

    def record(self, compute: Callable[[], StepOutput]) -> tuple[Callable[[], None], StepOutput]:
        """Record a graph. Where that fails, stream and generators are left as before."""
        with torch.cuda.device(self._device), _no_garbage_collection():
            graph = torch.cuda.CUDAGraph()
            if hasattr(graph, "register_generator_state"):  # later versions of torch find generators by themselves
                with warnings.catch_warnings(action="ignore"):
                    for generator in self._generators:
                        graph.register_generator_state(generator)
            stream, states = torch.cuda.current_stream(), [one.get_state() for one in self._generators]
            try:
                # Not on the stream that torch keeps for captures: graphs recorded on one share cuBLAS's workspace, and
                # those of several members may be replayed at once. Other threads pin memory meanwhile.
                with torch.cuda.graph(graph, stream=_stream_beside(stream), capture_error_mode="thread_local"):
                    answers = compute()
            except RuntimeError:  # torch leaves both as the capture had them
                torch.cuda.set_stream(stream)
                for generator, state in zip(self._generators, states, strict=True):
                    fresh = torch.Generator(self._device)
                    fresh.set_state(state)
                    generator.graphsafe_set_state(fresh)
                raise
        return graph.replay, answers


@contextmanager
def measured_convolutions() -> Iterator[None]:
    """Let cuDNN measure which of its kernels computes a convolution fastest; by default it guesses.

    What it has found for a shape it takes from then on, also where it may not measure, as while recording.

    References:
        "Performance tuning guide" of PyTorch: enable the cuDNN auto-tuner.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@cache
def _stream_beside(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """Return a stream to warm up and record on: always the same, as each keeps memory of its own, and no other's."""
    return torch.cuda.Stream(stream.device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before, not within: a graph that is freed during a capture spoils it."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class StepGraph:
    """Takes the steps of a training; after a few by replaying what was recorded.

    A step of a small network is hundreds of kernels of a few microseconds each: launching them one by one takes longer
    than they do. Where a recording fails, they are launched one by one from then on, and a warning says so.

    Args:
        recorder: The device's.

    References:
        "CUDA semantics" in PyTorch's documentation: whole-network capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._calls: dict[torch.Size, int] = {}  # by shape: the last batch of an epoch may be smaller
        self._recordings: dict[torch.Size, _Recording] = {}
        self._is_refused = False

    def __call__(self, compute: Callable[[Tensor, Tensor], StepOutput], images: Tensor, labels: Tensor) -> StepOutput:
        """Take a step.

        Args:
            compute: From images and labels to loss and logits, changing weights and whatever else in place. It may
                neither wait for the device nor depend on what changes on the host.
            images: uint8 (N, C, H, W).
            labels: int64 (N,).

        Returns:
            Loss and logits, which the next call overwrites.
        """
        shape = images.shape
        self._calls[shape] = self._calls.get(shape, 0) + 1
        if self._calls[shape] <= _WARM_UP and not self._is_refused:
            return self._recorder.warm_up(lambda: compute(images, labels))
        if shape not in self._recordings and not self._is_refused:
            self._record(compute, images, labels)
        return compute(images, labels) if self._is_refused else self._recordings[shape].replay(images, labels)

    def _record(self, compute: Callable[[Tensor, Tensor], StepOutput], images: Tensor, labels: Tensor) -> None:
        images, labels = images.clone(), labels.clone()
        try:
            launch, answers = self._recorder.record(lambda: compute(images, labels))
        except RuntimeError as error:
            warnings.warn(
                f"steps are launched kernel by kernel: no CUDA graph could be recorded: {error}", stacklevel=2
            )
            self._is_refused = True
            self._recordings.clear()  # what they draw from is gone
            return
        self._recordings[images.shape] = _Recording(launch, images, labels, answers)


@dataclass(frozen=True, slots=True)
class _Recording:
    """What was recorded, and the memory that it reads and writes."""

    launch: Callable[[], None]
    images: Tensor
    labels: Tensor
    answers: StepOutput

    def replay(self, images: Tensor, labels: Tensor) -> StepOutput:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.launch()
        return self.answers
