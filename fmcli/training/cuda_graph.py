"""Record a training step once as a CUDA graph, and replay it for every later step."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

N_WARM_UP_STEPS = 3  # before recording: libraries choose kernels and allocate their workspaces
StepOutput = tuple[Tensor, Tensor]
"""Mean loss () and logits (N, n_classes) of a step."""


class CudaGraphRecorder:
    """Records CUDA graphs.

    Args:
        device: The GPU.
        generators: Generators on the GPU that a step draws from. Each replay advances them.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self._device, self._generators = device, generators

    def warm_up(self, compute: Callable[[], StepOutput]) -> StepOutput:
        """Compute a step on a side stream, as PyTorch's notes on CUDA graphs require."""
        with torch.cuda.device(self._device), cudnn_benchmark():
            stream = torch.cuda.current_stream()
            side_stream = _side_stream(stream)
            side_stream.wait_stream(stream)
            with torch.cuda.stream(side_stream):
                output = compute()
            stream.wait_stream(side_stream)
        return output

    def record(self, compute: Callable[[], StepOutput]) -> tuple[Callable[[], None], StepOutput]:
        """Record a step without computing it. If that fails, the stream and the generators are as before.

        Returns:
            A function that computes the step again on the same memory, and the tensors that it writes.
        """
        with torch.cuda.device(self._device), _no_garbage_collection():
            graph = torch.cuda.CUDAGraph()
            if hasattr(graph, "register_generator_state"):  # later versions of torch find generators automatically
                with warnings.catch_warnings(action="ignore"):
                    for generator in self._generators:
                        graph.register_generator_state(generator)
            stream, states = torch.cuda.current_stream(), [generator.get_state() for generator in self._generators]
            try:
                # Do not record on torch's default capture stream: graphs of one stream share a cuBLAS workspace, but
                # graphs of several members may be replayed in parallel. "thread_local" lets other threads pin memory.
                with torch.cuda.graph(graph, stream=_side_stream(stream), capture_error_mode="thread_local"):
                    output = compute()
            except RuntimeError:  # torch does not restore the stream and the generators
                torch.cuda.set_stream(stream)
                for generator, state in zip(self._generators, states, strict=True):
                    restored = torch.Generator(self._device)
                    restored.set_state(state)
                    generator.graphsafe_set_state(restored)
                raise
        return graph.replay, output


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN measure its convolution kernels and choose the fastest; by default it uses a heuristic.

    cuDNN remembers its choice for each shape. It must not measure during a capture, so this is for warm-up steps.

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
def _side_stream(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """Return the stream for warm-up and recording: one per stream, because each has its own cached memory."""
    return torch.cuda.Stream(stream.device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block, but not inside it: freeing an old graph during a capture invalidates it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class GraphedStep:
    """A training step that is recorded after a few calls, and replayed from then on.

    A step of a small network consists of hundreds of kernels of a few microseconds each. Launching each of them
    takes longer than computing it. If recording fails, kernels are launched one at a time, after a warning.

    Args:
        recorder: Records graphs on the device.

    References:
        "CUDA semantics" in PyTorch's documentation: whole-network capture.
    """

    def __init__(self, recorder: CudaGraphRecorder) -> None:
        self._recorder = recorder
        self._calls: dict[torch.Size, int] = {}  # by shape: the last batch of an epoch may be smaller
        self._replays: dict[torch.Size, Callable[[Tensor, Tensor], StepOutput]] = {}
        self._has_failed = False

    def __call__(self, compute: Callable[[Tensor, Tensor], StepOutput], images: Tensor, labels: Tensor) -> StepOutput:
        """Take a step.

        Args:
            compute: Computes loss and logits from images and labels, and updates weights in place. It may neither wait
                for the device nor depend on values that change on the host.
            images: uint8 (N, C, H, W).
            labels: int64 (N,).

        Returns:
            Loss and logits. The next call overwrites them.
        """
        shape = images.shape
        self._calls[shape] = self._calls.get(shape, 0) + 1
        if self._calls[shape] <= N_WARM_UP_STEPS and not self._has_failed:
            return self._recorder.warm_up(lambda: compute(images, labels))
        if shape not in self._replays and not self._has_failed:
            self._record(compute, images.clone(), labels.clone())
        return compute(images, labels) if self._has_failed else self._replays[shape](images, labels)

    def _record(self, compute: Callable[[Tensor, Tensor], StepOutput], images: Tensor, labels: Tensor) -> None:
        """Record a step that reads these tensors. Replays copy their images and labels to them."""
        try:
            launch, output = self._recorder.record(lambda: compute(images, labels))
        except RuntimeError as error:
            warnings.warn(f"cannot record a CUDA graph, so each kernel is launched separately: {error}", stacklevel=2)
            self._has_failed = True
            self._replays.clear()  # their generator states were replaced
            return

        def replay(new_images: Tensor, new_labels: Tensor) -> StepOutput:
            images.copy_(new_images)
            labels.copy_(new_labels)
            launch()
            return output

        self._replays[images.shape] = replay
