"""Whether members should train one after another on all cores, or several at once, each on some of them.

The threads of an operation wait for each other at its end, and what lies between operations is one thread's: small
networks in small batches gain little by more of them. Several at once cost a process each.
"""

import math
import os
from collections.abc import Sequence

import torch

from fmcli.data import Splits
from fmcli.recipe import MemberSpec, Recipe, SourceFacts
from fmcli.recipe.layers import LayerTrace, trace_recipe

# Measured on two cores with AVX-512 BF16, for small networks.
_BETWEEN = 3e-3  # seconds of a step that more threads do not shorten
_RATE = 6e10  # multiply-adds a second of a thread
_START = 5.0  # seconds until a process trains
_WORTH = 1.2  # so many times as fast, or it is not told
_PROCESS = 1 << 30  # bytes, beside the images


def faster_jobs(recipe: Recipe, names: Sequence[str], splits: Splits, device: torch.device) -> tuple[int, float]:
    """Return how many members at once should train fastest, and how many times as fast as one after another that is.

    By an estimate, not a measurement; (1, 1.0) where several are not worth it.

    Args:
        recipe: The recipe.
        names: Which members are to be trained.
        splits: The images.
        device: Where to train; only a CPU is shared.
    """
    members = [member for member in recipe.members if member.name in names]
    threads = torch.get_num_threads()
    pipelines = any(member.augment.albumentations for member in members)  # have processes of their own
    most = min(threads, len(members), _processes_in_memory(splits))
    if device.type != "cpu" or pipelines or most < 2:
        return 1, 1.0
    traces = trace_recipe(recipe, SourceFacts(splits.train.input_shape, splits.train.class_names))
    works = [_work(member, traces[member.name], len(splits.train)) for member in members]
    seconds = {jobs: _seconds(works, jobs, threads // jobs) for jobs in range(1, most + 1)}
    best = min(seconds, key=seconds.__getitem__)
    times = seconds[1] / seconds[best]
    return (best, times) if times >= _WORTH else (1, 1.0)


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
    """Return how many processes, each with the images, half of the machine's memory holds; 1 where none can tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return 1
    images = sum(0 if images.is_mapped else images.pixels.nbytes for images in splits.present().values())
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (2 * (_PROCESS + images))
