"""Choose whether members train one at a time on all CPU threads, or in parallel, each on a part of the threads.

The threads of an operation wait for each other at its end, and a single thread does the work between operations. More
threads therefore speed up small networks with small batches only a little. Each parallel member needs its own process.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.choices import ExecutorName
from fmcli.data import Splits
from fmcli.errors import Remedy, UsageError
from fmcli.recipe import MemberSpec, Recipe
from fmcli.recipe.tracing import LayerTrace, count_multiply_adds
from fmcli.training.executors import load_executor

Traces = Mapping[str, Sequence[LayerTrace]]
"""The layers of each member's network, by the member's name."""

# Measured on two cores with AVX-512 BF16, for small networks.
STEP_OVERHEAD_S = 3e-3  # part of a step that more threads do not shorten
MULTIPLY_ADDS_PER_S = 6e10  # per thread
FP32_SLOWDOWN = 1.3  # time of a multiply-add in fp32 relative to bf16; five networks on a Xeon: 0.9 to 2.2
PROCESS_START_S = 5.0  # before a new process takes its first step
MIN_SPEEDUP = 1.2  # below it, members train one at a time
PROCESS_BYTES = 1 << 30  # memory of a process without the images
CGROUP_LIMITS = (  # memory limit of a Linux container in bytes: control groups version 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How members train in parallel: in processes on a CPU, on streams of one process on an NVIDIA GPU.

    Args:
        jobs: Number of members that train in parallel.
        threads: CPU threads per process.
        speedup: Estimated speedup over one member at a time; None if no estimate was made.
    """

    jobs: int
    threads: int
    speedup: float | None = None


def choose_concurrency(
    recipe: Recipe,
    names: Sequence[str],
    splits: Splits,
    traces: Traces,
    device: torch.device,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    run_threads: int | None = None,
) -> Concurrency | None:
    """Return how members train in parallel, or None to train one at a time in this process, on its threads.

    A GPU trains one member at a time unless `jobs` is given.

    Args:
        recipe: The recipe.
        names: Names of the members to train.
        splits: The images.
        traces: The layers of each member's network.
        device: The training device.
        jobs: Number of parallel members that the caller asked for.
        threads: CPU threads per member that the caller asked for.
        run_threads: CPU threads per member with which a resumed run was started; None for a new run. The remaining
            members use the same number, because it changes the weights, unless the caller asks for a different number
            or this process has too few threads.
    """
    available = torch.get_num_threads()
    if not names or (jobs is None and threads is not None):
        return None
    if device.type == "cpu" and threads is None and run_threads:  # a damaged state may have 0, which is refused later
        n_jobs = _max_jobs(recipe, names, splits, available // run_threads) if jobs is None else jobs
        if run_threads * min(n_jobs, len(names)) <= available:
            return Concurrency(n_jobs, run_threads) if n_jobs > 1 or run_threads < available else None
    if jobs == 1:
        return None
    if jobs is not None:
        return Concurrency(jobs, threads or max(available // min(jobs, len(recipe.members)), 1))
    return _choose_fastest(recipe, names, splits, traces) if device.type == "cpu" and run_threads is None else None


def limit_jobs(executor: ExecutorName | None, jobs: int | None) -> int | None:
    """Return the number of members to train in parallel: 1 if the executor trains one at a time.

    Args:
        executor: Name of the executor that the caller asked for.
        jobs: Number of parallel members that the caller asked for.

    Raises:
        UsageError: The executor trains one member at a time, and `jobs` is at least 2.
    """
    if executor is None or load_executor(executor).RUNS_IN_PARALLEL:
        return jobs
    if jobs is not None and jobs > 1:
        raise UsageError(
            f"the executor {executor!r} trains one member at a time, not {jobs}",
            hint="choose another executor",
            remedies=[Remedy("jobs", 1)],
        )
    return 1


def _choose_fastest(recipe: Recipe, names: Sequence[str], splits: Splits, traces: Traces) -> Concurrency | None:
    """Return the fastest concurrency, or None if members should train one at a time.

    The choice is an estimate, not a measurement, so that the same run always gets the same number of threads.
    """
    threads = torch.get_num_threads()
    max_jobs = _max_jobs(recipe, names, splits, threads)
    members = [member for member in recipe.members if member.name in names]
    workloads = [_workload(member, traces[member.name], len(splits.train)) for member in members]
    seconds = {jobs: _estimate_seconds(workloads, jobs, threads // jobs) for jobs in range(1, max_jobs + 1)}
    best = min(seconds, key=seconds.__getitem__)
    speedup = seconds[1] / seconds[best]
    return Concurrency(best, threads // best, speedup) if speedup >= MIN_SPEEDUP else None


def _max_jobs(recipe: Recipe, names: Sequence[str], splits: Splits, limit: int) -> int:
    """Return how many members can train in parallel, given their number, the memory, and a limit."""
    members = [member for member in recipe.members if member.name in names]
    if any(member.augment.albumentations for member in members):  # they start worker processes
        return 1
    return max(min(limit, len(members), _processes_in_memory(splits)), 1)


def _workload(member: MemberSpec, traces: Sequence[LayerTrace], n_images: int) -> tuple[int, float]:
    """Return a member's number of steps, and the multiply-adds of a step: the forward pass and both gradients."""
    trainer = member.trainer
    n_images = trainer.sample_size(n_images)
    batch = n_images if trainer.full_batch else min(trainer.batch_size, n_images)
    multiply_adds = 3 * count_multiply_adds(traces) * batch
    return trainer.epochs * math.ceil(n_images / batch), multiply_adds


def estimate_member_seconds(
    member: MemberSpec,
    traces: Sequence[LayerTrace],
    n_images: int,
    threads: int,
    precision: str,
    *,
    epochs_done: int = 0,
    steps_done: int = 0,
) -> float:
    """Return the estimated time to train a member on a CPU.

    Args:
        member: The member's recipe.
        traces: The layers of its network.
        n_images: Number of training images.
        threads: CPU threads.
        precision: `bf16` or `fp32`.
        epochs_done: Number of epochs that are trained already.
        steps_done: Number of steps of the next epoch that are taken already.
    """
    steps, multiply_adds = _workload(member, traces, n_images)
    if precision == "fp32":
        multiply_adds *= FP32_SLOWDOWN
    remaining = steps * (1 - epochs_done / member.trainer.epochs) - steps_done
    return max(remaining, 0) * _step_seconds(multiply_adds, threads)


def _step_seconds(multiply_adds: float, threads: int) -> float:
    return STEP_OVERHEAD_S + multiply_adds / (MULTIPLY_ADDS_PER_S * threads)


def _estimate_seconds(workloads: list[tuple[int, float]], jobs: int, threads: int) -> float:
    """Return the estimated time to train all members.

    Args:
        workloads: Steps, and multiply-adds per step, of each member.
        jobs: Number of parallel members.
        threads: CPU threads per member.
    """
    seconds = [steps * _step_seconds(multiply_adds, threads) for steps, multiply_adds in workloads]
    return total_seconds(seconds, jobs, start_s=PROCESS_START_S if jobs > 1 else 0)


def total_seconds(seconds: Iterable[float], jobs: int, *, start_s: float = 0) -> float:
    """Return the time to train members if the next one starts when another ends.

    Args:
        seconds: Time to train each member.
        jobs: Number of parallel members.
        start_s: Seconds before each member takes its first step.
    """
    ends = [0.0] * jobs
    for one in seconds:
        ends[ends.index(min(ends))] += start_s + one
    return max(ends)


def _processes_in_memory(splits: Splits) -> int:
    """Return how many processes, each with the images, fit in half of the memory; 1 if its size is unknown."""
    image_bytes = sum(0 if images.is_mapped else images.pixels.nbytes for images in splits.present().values())
    return max(_memory_bytes() // (2 * (PROCESS_BYTES + image_bytes)), 1)


def _memory_bytes() -> int:
    """Return the memory of the machine or its container in bytes, or 0 if unknown."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # the file is missing, or contains "max"
            memory = min(memory, int(path.read_text()))
    return memory
