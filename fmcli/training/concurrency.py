"""Whether members should train one after another on all cores, or several at once, each on some of them.

The threads of an operation wait for each other at its end, and what lies between operations is one thread's: small
networks in small batches gain little by more of them. Several at once cost a process each.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.data import Splits
from fmcli.recipe import MemberSpec, Recipe, SourceFacts
from fmcli.recipe.tracing import LayerTrace, trace_recipe

# Measured on two cores with AVX-512 BF16, for small networks.
_BETWEEN = 3e-3  # seconds of a step that more threads do not shorten
_RATE = 6e10  # multiply-adds a second of a thread
_START = 5.0  # seconds until a process trains
_WORTH = 1.2  # so many times as fast, or one after another
_PROCESS = 1 << 30  # bytes, beside the images
_CONTAINER = (  # how much memory a container may use, in bytes, on Linux: version 2 and 1 of control groups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Share:
    """How members train at once: in processes of their own, but on an NVIDIA GPU.

    Args:
        jobs: How many at once.
        threads: Of the CPU, for each process.
        speedup: How many times as fast that should be as one by one; None where it was not chosen for that.
    """

    jobs: int
    threads: int
    speedup: float | None = None


def share_out(
    recipe: Recipe,
    names: Sequence[str],
    splits: Splits,
    device: torch.device,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    kept: int | None = None,
) -> Share | None:
    """Return how members train at once; None: one by one in this process, on its threads.

    Args:
        recipe: The recipe.
        names: Which members are to be trained.
        splits: The images.
        device: Where to train.
        jobs: How many at once, where that is asked for.
        threads: CPU threads for each, where that is asked for.
        kept: With how many threads the run was begun. Others keep them, unless other threads are asked for, or there
            are too few: with other numbers of threads, weights come out otherwise. None for a run that begins.
    """
    here = torch.get_num_threads()
    if not names or (jobs is None and threads is not None):
        return None
    if device.type == "cpu" and threads is None and kept:  # a damaged state may say 0, which is refused later
        at_once = _most_at_once(recipe, names, splits, here // kept) if jobs is None else jobs
        if kept * min(at_once, len(names)) <= here:
            return Share(at_once, kept) if at_once > 1 or kept < here else None
    if jobs == 1:
        return None
    if jobs is not None:
        return Share(jobs, threads or max(here // min(jobs, len(recipe.members)), 1))
    return _choose_fastest(recipe, names, splits) if device.type == "cpu" and kept is None else None


def _choose_fastest(recipe: Recipe, names: Sequence[str], splits: Splits) -> Share | None:
    """Return what should be fastest; None: one by one.

    By an estimate, not a measurement, so that a run that is begun again has the same numbers of threads.
    """
    threads = torch.get_num_threads()
    most = _most_at_once(recipe, names, splits, threads)
    traces = trace_recipe(recipe, SourceFacts(splits.train.input_shape, splits.train.class_names))
    members = [member for member in recipe.members if member.name in names]
    works = [_work(member, traces[member.name], len(splits.train)) for member in members]
    seconds = {jobs: _seconds(works, jobs, threads // jobs) for jobs in range(1, most + 1)}
    best = min(seconds, key=seconds.__getitem__)
    times = seconds[1] / seconds[best]
    return Share(best, threads // best, times) if times >= _WORTH else None


def _most_at_once(recipe: Recipe, names: Sequence[str], splits: Splits, most: int) -> int:
    """Return how many members there is room for: as many as there are, and as memory holds, but no more than given."""
    members = [member for member in recipe.members if member.name in names]
    if any(member.augment.albumentations for member in members):  # they have processes of their own
        return 1
    return max(min(most, len(members), _processes_in_memory(splits)), 1)


def _work(member: MemberSpec, traces: tuple[LayerTrace, ...], n_images: int) -> tuple[int, float]:
    """Return how many steps a member takes, and the multiply-adds of one: of outputs and both kinds of gradients."""
    trainer = member.trainer
    n_images = trainer.sample_size(n_images)
    batch = n_images if trainer.full_batch else min(trainer.batch_size, n_images)
    adds = 3 * sum(trace.multiply_adds for trace in traces) * batch
    return trainer.epochs * math.ceil(n_images / batch), adds


def _seconds(works: list[tuple[int, float]], jobs: int, threads: int) -> float:
    """Estimate how long members train, each on so many threads, when the next begins where one ends."""
    ends = [0.0] * jobs
    for steps, adds in works:
        first = ends.index(min(ends))
        ends[first] += (_START if jobs > 1 else 0) + steps * (_BETWEEN + adds / (_RATE * threads))
    return max(ends)


def _processes_in_memory(splits: Splits) -> int:
    """Return how many processes, each with the images, half of the memory holds; 1 where none can tell."""
    images = sum(0 if images.is_mapped else images.pixels.nbytes for images in splits.present().values())
    return max(_memory() // (2 * (_PROCESS + images)), 1)


def _memory() -> int:
    """Return how many bytes of memory the machine has, or its container; 0 where neither tells."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CONTAINER:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            memory = min(memory, int(path.read_text()))
    return memory
