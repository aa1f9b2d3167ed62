"""Shared code of the peers. A peer gets its job as one JSON argument and prints its answer as one JSON object."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARM_UP_STEPS = 3
MIN_STEPS = 5
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A job for a peer.

    Args:
        task: Name of the task, a key of the dict that the peer passes to `main`.
        images: Folder with IDX files.
        work: Key of `works.WORKS`.
        augment: Augment with rotation and translation.
        bf16: Multiply in bfloat16. fmcli ignores it and chooses the precision itself.
        device: `cpu` or `cuda`.
        threads: Number of CPU threads.
        seconds: Minimum measuring time.
    """

    task: str
    images: str
    work: str = ""
    augment: bool = False
    bf16: bool = False
    device: str = "cpu"
    threads: int = 1
    seconds: float = 4.0


def main(tasks: Mapping[str, Callable[[Job], Answer]]) -> None:
    """Run the job that the command line gives, and print the answer with the peak memory of this process."""
    job = Job(**json.loads(sys.argv[1]))
    answer = tasks[job.task](job)
    unit = 1 if sys.platform == "darwin" else 1024
    answer["own_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(answer), flush=True)


def read_images(job: Job, split: str, *, multiple_of: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (N, 28, 28) and labels (N,), with N rounded down to whole batches."""
    folder = Path(job.images)
    images = np.fromfile(folder / f"{split}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)
    count = len(images) // multiple_of * multiple_of
    return images[:count], labels[:count]


class Clock:
    """Time training steps after a warm-up.

    Args:
        seconds: Minimum measuring time.
        batch_size: Number of images per step.
        synchronize: Function that waits until the device has finished all queued work.
    """

    def __init__(self, seconds: float, batch_size: int, synchronize: Callable[[], object] = lambda: None) -> None:
        self.limit, self.batch_size, self.synchronize = seconds, batch_size, synchronize
        self.steps = 0
        self.first = self.started = self.seconds = 0.0

    def step(self) -> bool:
        """Count a finished step. Return whether it was the last one to time."""
        now = time.perf_counter()
        self.steps += 1
        if not self.started:
            self.first = self.first or now
            if self.steps >= WARM_UP_STEPS and now - self.first >= self.limit / 4:
                self.synchronize()
                self.steps, self.started = 0, time.perf_counter()
            return False
        if self.steps < MIN_STEPS or now - self.started < self.limit:
            return False
        self.synchronize()
        self.seconds = time.perf_counter() - self.started
        return True

    def answer(self) -> Answer:
        """Return the throughput."""
        return {
            "images_per_second": self.steps * self.batch_size / self.seconds,
            "steps": self.steps,
            "seconds": self.seconds,
        }


def time_passes(predict: Callable[[], object], n_images: int, seconds: float) -> Answer:
    """Return the throughput of complete passes over the images, after one warm-up pass."""
    predict()
    passes, started = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - started < seconds:
        predict()
        passes += 1
    taken = time.perf_counter() - started
    return {"images_per_second": passes * n_images / taken, "passes": passes, "seconds": taken}


def majority(logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the labels of the majority vote, (n_members, n_images, n_classes) to (n_images,). Lowest label wins."""
    votes = np.eye(logits.shape[2], dtype=np.int64)[logits.argmax(axis=2)].sum(axis=0)
    return votes.argmax(axis=1)
