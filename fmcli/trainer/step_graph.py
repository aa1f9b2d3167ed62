"""What a training step computes, recorded once on an NVIDIA GPU and launched as a whole from then on."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

_WARM_UP = 3  # calls before recording, in which libraries choose kernels and allocate what they keep
Answers = tuple[Tensor, Tensor]


class Recorder(Protocol):
    """How a device records."""

    def warm_up(self, compute: Callable[[], Answers]) -> Answers:
        """Compute, in the way that recording needs before it."""

    def record(self, compute: Callable[[], Answers]) -> tuple[Callable[[], None], Answers]:
        """Return what computes anew, from the same memory into the same, and that memory; nothing is computed yet."""


class CudaRecorder:
    """Records CUDA graphs.

    Args:
        device: The GPU.
        generators: Those on it that are drawn from: each replay goes on with them.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._device, self._generators = device, generators

    def warm_up(self, compute: Callable[[], Answers]) -> Answers:
        """Compute on a stream aside, as PyTorch's notes on CUDA graphs ask for."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                answers = compute()
            torch.cuda.current_stream().wait_stream(aside)
        return answers

    def record(self, compute: Callable[[], Answers]) -> tuple[Callable[[], None], Answers]:
        """Record a graph."""
        with torch.cuda.device(self._device):
            graph = torch.cuda.CUDAGraph()
            if hasattr(graph, "register_generator_state"):  # later versions of torch find generators by themselves
                with warnings.catch_warnings(action="ignore"):
                    for generator in self._generators:
                        graph.register_generator_state(generator)
            with torch.cuda.graph(graph):
                answers = compute()
        return graph.replay, answers


class StepGraph:
    """Computes loss, logits and gradients of a batch; after a few calls by replaying what was recorded.

    A step of a small network is hundreds of kernels of a few microseconds each: launching them one by one takes longer
    than they do. Where a recording fails, they are launched one by one all the same, and a warning says so.

    Args:
        compute: From uint8 (N, C, H, W) and int64 (N,) to loss and logits; sets the parameters' gradients. It may
            neither wait for the device nor depend on what changes on the host.
        parameters: Which get gradients.
        recorder: The device's.

    References:
        "CUDA semantics" in PyTorch's documentation: whole-network capture.
    """

    def __init__(
        self, compute: Callable[[Tensor, Tensor], Answers], parameters: Sequence[nn.Parameter], recorder: Recorder
    ) -> None:
        self._compute, self._parameters, self._recorder = compute, parameters, recorder
        self._calls: dict[torch.Size, int] = {}  # by shape: the last batch of an epoch may be smaller
        self._recordings: dict[torch.Size, _Recording | None] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> Answers:
        """Compute. What is returned is overwritten by the next call."""
        shape = images.shape
        self._calls[shape] = self._calls.get(shape, 0) + 1
        if self._calls[shape] <= _WARM_UP:
            return self._recorder.warm_up(lambda: self._compute(images, labels))
        if shape not in self._recordings:
            self._recordings[shape] = self._record(images, labels)
        recording = self._recordings[shape]
        return self._compute(images, labels) if recording is None else recording.replay(images, labels)

    def _record(self, images: Tensor, labels: Tensor) -> "_Recording | None":
        images, labels = images.clone(), labels.clone()
        try:
            launch, answers = self._recorder.record(lambda: self._compute(images, labels))
        except RuntimeError as error:
            warnings.warn(
                f"steps are launched kernel by kernel: no CUDA graph could be recorded: {error}", stacklevel=2
            )
            return None
        gradients = [parameter.grad for parameter in self._parameters]
        return _Recording(launch, images, labels, answers, self._parameters, gradients)


@dataclass(frozen=True, slots=True)
class _Recording:
    """What was recorded, and the memory that it reads and writes."""

    launch: Callable[[], None]
    images: Tensor
    labels: Tensor
    answers: Answers
    parameters: Sequence[nn.Parameter]
    gradients: Sequence[Tensor | None]

    def replay(self, images: Tensor, labels: Tensor) -> Answers:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.launch()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.answers
