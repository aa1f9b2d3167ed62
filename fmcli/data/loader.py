"""Load batches of uint8 images on the device."""

import math
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcli.data.image_set import ImageSet
from fmcli.errors import DataError, FmcliError, printable
from fmcli.hardware.cpu import count_cores

Transform = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
"""Function that augments uint8 (N, H, W, C) on the host. The same seed gives the same images."""
_MAX_WORKERS = 2
_BATCHES_AHEAD = 4  # number of prepared batches per worker process, or of the thread that streams batches
_MAX_EVALUATION_BATCH = 500  # larger batches are not faster on a CPU
_MAX_EVALUATION_PIXELS = _MAX_EVALUATION_BATCH * 64 * 64  # 64 filters then need half a gigabyte in float32
_MAX_MEMORY_FRACTION = 0.5  # fraction of a GPU's free memory


class DeviceLoader:
    """Keep images on the device as uint8 and yield them in shuffled batches.

    On a CPU, images in memory are not copied. Images that are mapped from a file or too large for a GPU are streamed: a
    thread prepares the next batches while the trainer computes, and copies them to the GPU. Streaming does
    not change the batches. With a `transform`, worker processes augment the batches.

    Args:
        images: Images to load.
        batch_size: Number of images per batch. The last batch of an epoch may be smaller.
        device: Device of the batches.
        drop_last: Skip the last batch if it is smaller.
        transform: Augmentation of a batch on the host.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        device: torch.device,
        drop_last: bool = False,
        transform: Transform | None = None,
    ) -> None:
        self.batch_size = min(batch_size, len(images))
        self.n_images = len(images) // self.batch_size * self.batch_size if drop_last else len(images)
        self.device = device
        self._image_set = images
        self._labels = torch.tensor(images.labels, device=device)
        self._transform = transform
        self._workers: torch.utils.data.DataLoader[Tensor | str] | None = None
        self._plan: list[tuple[int, NDArray[np.int64]]] = []
        self._is_streamed = transform is None and _must_stream(images, device)
        # PyTorch has 32 streams of each priority and reuses them. Copies have a different
        # priority from training steps, so that they never share a stream.
        self._copy_stream = (
            torch.cuda.Stream(device, priority=-1) if self._is_streamed and device.type == "cuda" else None
        )
        self._rows: Tensor | None = None  # indices of the images in `self._images`; None: all in order
        if self._is_streamed or device.type == "cpu":
            self._images = _as_tensor(images.pixels)
            self._rows = None if images.rows is None else torch.from_numpy(images.rows)
        elif transform is None:
            self._images = torch.empty((len(images), *images.input_shape), dtype=torch.uint8, device=device)
            for part, block in zip(self._images.split(images.block_size), images.blocks(), strict=True):
                part.copy_(_as_tensor(block))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return math.ceil(self.n_images / self.batch_size)

    def mean_over_images(self, batch_means: Tensor) -> float:
        """Return the mean over the images of an epoch, given the mean of each batch, shape (n_batches,)."""
        sizes = torch.full(batch_means.shape, self.batch_size, dtype=torch.float64)
        sizes[-1] = self.n_images - (len(self) - 1) * self.batch_size
        return float(batch_means.cpu().double() @ sizes) / self.n_images

    def batches(self) -> Iterator[Tensor]:
        """Yield all images in their original order: uint8 (N, C, H, W)."""
        indices = torch.arange(len(self._image_set), device=self._images.device)
        yield from self._gather_batches(indices.split(self.batch_size))

    def epoch(self, generator: torch.Generator, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of shuffled batches.

        Args:
            generator: CPU generator for the order and, with a transform, for the seed of each batch.
            skip: Number of batches to skip at the start. The remaining batches are the same as without skipping.

        Yields:
            Images uint8 (N, C, H, W) and labels int64 (N,), on the device.
        """
        order = torch.randperm(len(self._image_set), generator=generator)[: self.n_images]
        host_indices = order.split(self.batch_size)[skip:]
        device_indices = order.to(self.device).split(self.batch_size)[skip:]
        if self._transform is not None:
            seeds = torch.randint(2**31, (len(self),), generator=generator).tolist()[skip:]
            plan = [(seed, indices.numpy()) for seed, indices in zip(seeds, host_indices, strict=True)]
            batches: Iterable[Tensor] = self._augmented_batches(plan)
        else:
            batches = self._gather_batches(host_indices if self._is_streamed else device_indices)
        for images, indices in zip(batches, device_indices, strict=True):
            yield images, self._labels[indices]

    def _gather_batches(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each batch of indices. If images are streamed, a thread prepares the next batches."""
        if not self._is_streamed:
            yield from map(self._take, batches)
            return
        waiting: deque[Future[Tensor]] = deque()
        thread = ThreadPoolExecutor(1)
        try:
            for indices in batches:
                waiting.append(thread.submit(self._stream, indices))
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._receive(waiting.popleft())
            while waiting:
                yield self._receive(waiting.popleft())
        finally:
            thread.shutdown(cancel_futures=True)

    def _stream(self, indices: Tensor) -> Tensor:
        images = self._take(indices)
        if self._copy_stream is None:
            return images
        with torch.cuda.stream(self._copy_stream):  # copy while the trainer's stream computes
            images = images.pin_memory().to(self.device, non_blocking=True)
        self._copy_stream.synchronize()
        return images

    def _receive(self, future: Future[Tensor]) -> Tensor:
        images = future.result()
        if self._copy_stream is not None:  # the memory must not be reused before the trainer's stream has read it
            images.record_stream(torch.cuda.current_stream(self.device))
        return images

    def _take(self, indices: Tensor) -> Tensor:
        return self._images[indices if self._rows is None else self._rows[indices]].contiguous()

    def _augmented_batches(self, plan: list[tuple[int, NDArray[np.int64]]]) -> Iterator[Tensor]:
        if self._workers is None:
            assert self._transform is not None
            self._workers = torch.utils.data.DataLoader(
                _AugmentedBatches(self._image_set, self._transform),
                batch_size=None,
                sampler=self._plan,  # this list is filled again for each epoch
                num_workers=min(_MAX_WORKERS, count_cores()),
                prefetch_factor=_BATCHES_AHEAD,
                persistent_workers=True,
                multiprocessing_context="fork" if sys.platform == "linux" else None,  # forked workers share the images
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_ignore_signals,
            )
        self._plan[:] = plan
        for batch in _read_workers(self._workers):
            if isinstance(batch, str):
                raise DataError(
                    f"augment.albumentations fails on a training image: {batch.splitlines()[0]}",
                    hint="check [[augment.albumentations]] in the recipe",
                )
            yield batch.to(self.device, non_blocking=True)


def evaluation_loader(images: ImageSet, device: torch.device) -> DeviceLoader:
    """Return a loader for evaluation, with smaller batches for large images.

    All predictions on a dataset use the same batch size, because a different batch size changes the last bits.
    """
    batch_size = max(_MAX_EVALUATION_PIXELS // math.prod(images.input_shape[1:]), 1)
    return DeviceLoader(images, batch_size=min(batch_size, _MAX_EVALUATION_BATCH), device=device)


def evaluation_batches(images: ImageSet) -> Iterator[NDArray[np.uint8]]:
    """Yield all images in order, in the batches of `evaluation_loader`: uint8 (N, C, H, W), on the host."""
    for batch in evaluation_loader(images, torch.device("cpu")).batches():
        yield batch.numpy()


def _read_workers(workers: Iterable[Tensor | str]) -> Iterator[Tensor | str]:
    """Yield the results of worker processes. Raise an error that explains why a process failed."""
    try:
        yield from workers
    except (RuntimeError, OSError) as error:  # "worker exited unexpectedly", "too many open files"
        raise explain_worker_error(error) from error


def is_worker_error(error: Exception) -> bool:
    """Return whether PyTorch reports that a worker process died. It can raise this error at any point of a step."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def explain_worker_error(error: Exception) -> FmcliError:
    """Return the error to raise if a worker process cannot start, dies or cannot return a batch."""
    return FmcliError(
        f"a worker process for augment.albumentations failed: {printable(str(error).partition(chr(10))[0])}",
        hint="allow more memory, more shared memory (in a container: docker run --shm-size=8g) or more open files "
        "(ulimit -n)",
        remedies=["batch-size"],
    )


def _must_stream(images: ImageSet, device: torch.device) -> bool:
    if device.type != "cuda":
        return images.is_mapped
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved by PyTorch but free
    free = torch.cuda.mem_get_info(device)[0] + reusable
    return len(images) * math.prod(images.input_shape) > _MAX_MEMORY_FRACTION * free


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Return a tensor that shares the memory of an array. Do not write to it, since the array may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes of the group. The trainer stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _AugmentedBatches(torch.utils.data.Dataset[Tensor | str]):
    """Augmented batches. A batch depends only on the seed and the indices, not on the worker process."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, task: Any) -> Tensor | str:
        seed, indices = task
        images = self.images.take(indices).transpose(0, 2, 3, 1)  # (N, H, W, C)
        try:
            return torch.from_numpy(self.transform(images, seed).transpose(0, 3, 1, 2).copy())
        except Exception as error:  # transforms raise many types; the trainer raises a DataError
            return f"{type(error).__name__}: {error}"
