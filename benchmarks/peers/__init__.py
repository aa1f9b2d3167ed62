"""What the peers share: a job comes in as one JSON argument, the answer goes out as one JSON object."""

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
LEAST_STEPS = 5
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is to do.

    Args:
        task: A key of what the peer gives to `main`.
        images: A folder of IDX files.
        work: A key of `works.WORKS`.
        augment: With rotation and translation.
        bf16: Multiply in bfloat16; fmcli decides by itself.
        device: `cpu` or `cuda`.
        threads: How many.
        seconds: How long to measure, at least.
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
    """Do the job on the command line and print the answer, with this process's own peak memory."""
    job = Job(**json.loads(sys.argv[1]))
    answer = tasks[job.task](job)
    unit = 1 if sys.platform == "darwin" else 1024
    answer["own_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps(answer), flush=True)


def read_images(job: Job, split: str, *, multiple_of: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (N, 28, 28) and labels (N,), as many as fill whole batches."""
    folder = Path(job.images)
    images = np.fromfile(folder / f"{split}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{split}-labels-idx1-ubyte", np.uint8, offset=8)
    count = len(images) // multiple_of * multiple_of
    return images[:count], labels[:count]


class Clock:
    """Counts training steps, after a warm-up, until the time is up.

    Args:
        seconds: How long to count, at least.
        batch_size: Images in a step.
        synchronize: Waits until the device has done what it was given.
    """

    def __init__(self, seconds: float, batch_size: int, synchronize: Callable[[], object] = lambda: None) -> None:
        self.limit, self.batch_size, self.synchronize = seconds, batch_size, synchronize
        self.steps = 0
        self.first = self.started = self.seconds = 0.0

    def step(self) -> bool:
        """Take note that a step is done; tell whether it was the last to count."""
        now = time.perf_counter()
        self.steps += 1
        if not self.started:
            self.first = self.first or now
            if self.steps >= WARM_UP_STEPS and now - self.first >= self.limit / 4:
                self.synchronize()
                self.steps, self.started = 0, time.perf_counter()
            return False
        if self.steps < LEAST_STEPS or now - self.started < self.limit:
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
    """Return how many images a second are predicted in whole passes over them, after one that is not counted."""
    predict()
    passes, started = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - started < seconds:
        predict()
        passes += 1
    taken = time.perf_counter() - started
    return {"images_per_second": passes * n_images / taken, "passes": passes, "seconds": taken}


def majority(logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the label with the most votes, the lowest of several: (n_members, n_images, n_classes) to (n_images,)."""
    votes = np.eye(logits.shape[2], dtype=np.int64)[logits.argmax(axis=2)].sum(axis=0)
    return votes.argmax(axis=1)
