"""Batches of uint8 images on the device."""

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

# Augments uint8 (N, H, W, C) on the host; the same seed gives the same images.
Transform = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]
_WORKERS = 2
_BATCHES_AHEAD = 4  # for each worker, or for the thread that streams
_MOST_ANSWERED = 500  # images at once; more gain nothing on a CPU
_MOST_PIXELS = _MOST_ANSWERED * 64 * 64  # likewise: of so many, 64 filters make half a gigabyte in float32
_SHARE = 0.5  # of a GPU's free memory that images may take


class DeviceLoader:
    """Images that live on the device as uint8 and leave it in shuffled batches.

    A CPU takes them from where they are. What is mapped from a file, or too large for a GPU, streams: a thread gathers
    batches, and copies them to a GPU, ahead of the trainer. With a `transform`, worker processes make them. The batches
    are the same in each case.

    Args:
        images: What to load.
        batch_size: The last batch of an epoch is smaller where the count does not divide.
        device: Where the batches are wanted.
        drop_last: Leave that last batch out.
        transform: Host-side augmentation of a batch, given a seed.
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
        self._set = images
        self._labels = torch.tensor(images.labels, device=device)
        self._transform = transform
        self._workers: torch.utils.data.DataLoader[Tensor | str] | None = None
        self._plan: list[tuple[int, NDArray[np.int64]]] = []
        self._streams = transform is None and _has_to_stream(images, device)
        # Of another priority than those that compute, which it could be one of: PyTorch has but 32 of each.
        self._copies = torch.cuda.Stream(device, priority=-1) if self._streams and device.type == "cuda" else None
        self._rows: Tensor | None = None
        if self._streams or device.type == "cpu":
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
        """Return the mean over an epoch's images of what is a mean over each of its batches: (n_batches,)."""
        sizes = torch.full(batch_means.shape, self.batch_size, dtype=torch.float64)
        sizes[-1] = self.n_images - (len(self) - 1) * self.batch_size
        return float(batch_means.cpu().double() @ sizes) / self.n_images

    def batches(self) -> Iterator[Tensor]:
        """Yield all images in their own order: uint8 (N, C, H, W)."""
        places = torch.arange(len(self._set), device=self._images.device)
        yield from self._gathered(places.split(self.batch_size))

    def epoch(self, generator: torch.Generator, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch of shuffled batches.

        Args:
            generator: On the CPU; draws the order, and with a transform each batch's seed.
            skip: How many batches to leave out at the beginning; the others are the same.

        Yields:
            uint8 (N, C, H, W) and int64 (N,), on the device.
        """
        order = torch.randperm(len(self._set), generator=generator)[: self.n_images]
        batches = order.split(self.batch_size)[skip:]
        places = order.to(self.device).split(self.batch_size)[skip:]
        if self._transform is not None:
            seeds = torch.randint(2**31, (len(self),), generator=generator).tolist()[skip:]
            plan = [(seed, batch.numpy()) for seed, batch in zip(seeds, batches, strict=True)]
            batches_of_images: Iterable[Tensor] = self._host_batches(plan)
        else:
            batches_of_images = self._gathered(batches if self._streams else places)
        for images, batch in zip(batches_of_images, places, strict=True):
            yield images, self._labels[batch]

    def _gathered(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield batches, by the images' places; those that stream are gathered while earlier ones are used."""
        if not self._streams:
            yield from map(self._take, batches)
            return
        waiting: deque[Future[Tensor]] = deque()
        thread = ThreadPoolExecutor(1)
        try:
            for batch in batches:
                waiting.append(thread.submit(self._gather, batch))
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._received(waiting.popleft())
            while waiting:
                yield self._received(waiting.popleft())
        finally:
            thread.shutdown(cancel_futures=True)

    def _gather(self, places: Tensor) -> Tensor:
        images = self._take(places)
        if self._copies is None:
            return images
        with torch.cuda.stream(self._copies):  # beside the trainer's, so that one copies while the other computes
            images = self._on_device(images.pin_memory())
        self._copies.synchronize()
        return images

    def _received(self, gathered: Future[Tensor]) -> Tensor:
        images = gathered.result()
        if self._copies is not None:  # its memory may be used again when the trainer's stream is done with it
            images.record_stream(torch.cuda.current_stream(self.device))
        return images

    def _take(self, places: Tensor) -> Tensor:
        return self._images[places if self._rows is None else self._rows[places]].contiguous()

    def _on_device(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True)

    def _host_batches(self, plan: list[tuple[int, NDArray[np.int64]]]) -> Iterator[Tensor]:
        if self._workers is None:
            assert self._transform is not None
            self._workers = torch.utils.data.DataLoader(
                _HostBatches(self._set, self._transform),
                batch_size=None,
                sampler=self._plan,  # the list is refilled for each epoch
                num_workers=min(_WORKERS, count_cores()),
                prefetch_factor=_BATCHES_AHEAD,
                persistent_workers=True,
                multiprocessing_context="fork" if sys.platform == "linux" else None,  # else images are copied to each
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_leave_signals_to_the_trainer,
            )
        self._plan[:] = plan
        for batch in _alive(self._workers):
            if isinstance(batch, str):
                raise DataError(
                    f"host-side augmentation fails on a training image: {batch.splitlines()[0]}",
                    hint="check [[augment.albumentations]]",
                )
            yield self._on_device(batch)


def evaluation_loader(images: ImageSet, device: torch.device) -> DeviceLoader:
    """Return a loader of as many images as networks answer at once, fewer where they are large.

    All who predict a data set take as many, so that their answers agree to the last bit.
    """
    most = max(_MOST_PIXELS // math.prod(images.input_shape[1:]), 1)
    return DeviceLoader(images, batch_size=min(most, _MOST_ANSWERED), device=device)


def _alive(workers: Iterable[Tensor | str]) -> Iterator[Tensor | str]:
    """Yield what worker processes make.

    Raises:
        FmcliError: They cannot be started, one of them died, or has no room to hand over what it made.
    """
    try:
        yield from workers
    except (RuntimeError, OSError) as error:  # "worker exited unexpectedly", "too many open files"
        raise explain_worker_error(error) from error


def is_worker_error(error: Exception) -> bool:
    """Tell whether PyTorch says that a worker process died, which it does wherever the trainer is just then."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def explain_worker_error(error: Exception) -> FmcliError:
    """Return what to tell where worker processes fail."""
    return FmcliError(
        f"host-side augmentation has stopped: {printable(str(error).partition(chr(10))[0])}",
        hint="it runs in processes of its own, which need memory, shared memory too (--shm-size of a container), and "
        "open files (ulimit -n); a smaller --set trainer.batch_size=… needs less",
    )


def _has_to_stream(images: ImageSet, device: torch.device) -> bool:
    if device.type != "cuda":
        return images.is_mapped
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free, though PyTorch has it
    free = torch.cuda.mem_get_info(device)[0] + kept
    return len(images) * math.prod(images.input_shape) > _SHARE * free


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Return images as they lie in memory or a file; nothing may be written to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let Ctrl-C and SIGTERM, which reach a whole process group, count for the trainer alone: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _HostBatches(torch.utils.data.Dataset[Tensor | str]):
    """Augmented batches, each from its own seed: the same whichever worker makes it."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, task: Any) -> Tensor | str:
        seed, indices = task
        images = self.images.take(indices).transpose(0, 2, 3, 1)  # (N, H, W, C)
        try:
            return torch.from_numpy(self.transform(images, seed).transpose(0, 3, 1, 2).copy())
        except Exception as error:  # whatever a foreign transform raises; told to the trainer, not printed here
            return f"{type(error).__name__}: {error}"
