"""Execute a run's plan: train the members one at a time, in processes, or interleaved on CUDA streams."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from fmcli.data import Splits, load_splits
from fmcli.errors import DivergedError
from fmcli.events import EpochFinished, MemberDiverged, Reporter
from fmcli.hardware.device import use_own_stream
from fmcli.training.executors import Job, JobResult, run_in_processes, run_interleaved
from fmcli.training.fingerprint import PLANNED, check_fingerprint
from fmcli.training.loop import train_member
from fmcli.training.plan import RunPlan, compute_fingerprints

History = list[EpochFinished]


def execute(
    plan: RunPlan, splits: Splits, reporter: Reporter, *, data_root: Path | None, save_after: float
) -> dict[str, History]:
    """Train the members of a run.

    Args:
        plan: The run's plan.
        splits: The images.
        reporter: Receives events.
        data_root: Folder that is searched first for built-in datasets.
        save_after: Seconds between saves within one epoch.

    Returns:
        The history of each member, in recipe order.

    Raises:
        DivergedError: The loss of a member is not finite. The other members are trained.
    """
    results = _train_members(plan, splits, reporter, data_root=data_root, save_after=save_after)
    del splits  # processes load their own copy
    histories = _collect_histories(results, plan.members, reporter)
    return {name: histories[name] for name in plan.members}


def _train_members(
    plan: RunPlan, splits: Splits, reporter: Reporter, *, data_root: Path | None, save_after: float
) -> Generator[JobResult]:
    """Start with the finished members, so that damaged files are found before hours of training."""
    jobs = {name: partial(_train_member, plan, name, save_after, splits) for name in plan.members}
    yield from _run_one_at_a_time({name: jobs[name] for name in plan.members if name not in plan.remaining}, reporter)
    remaining = {name: jobs[name] for name in plan.remaining}
    if plan.concurrency is None:
        yield from _run_one_at_a_time(remaining, reporter)
    elif plan.uses_streams:
        context = partial(use_own_stream, plan.device)
        yield from run_interleaved(remaining, plan.concurrency.jobs, reporter, context=context)
    else:
        del splits, jobs, remaining  # processes load their own copy of the images
        separate = {name: partial(_train_in_process, plan, name, save_after, data_root) for name in plan.remaining}
        yield from run_in_processes(separate, plan.concurrency.jobs, reporter)


def _train_member(plan: RunPlan, name: str, save_after: float, splits: Splits, reporter: Reporter) -> History:
    return train_member(
        plan.recipe,
        name,
        splits,
        plan.folder / name,
        device=plan.device,
        resume=plan.resume,
        save_after=save_after,
        reporter=reporter,
    )


def _train_in_process(
    plan: RunPlan, name: str, save_after: float, data_root: Path | None, reporter: Reporter
) -> History:
    """Train a member in a new process. The images may have changed since the run was planned, hours ago."""
    torch.set_num_threads(plan.fingerprints[name].threads)
    splits = load_splits(plan.recipe.data, data_root)
    now = compute_fingerprints(plan.recipe, splits, plan.device)[name]
    check_fingerprint(now, plan.fingerprints[name], PLANNED, member=name, folder=plan.folder)
    return _train_member(plan, name, save_after, splits, reporter)


def _run_one_at_a_time(jobs: Mapping[str, Job], reporter: Reporter) -> Generator[JobResult]:
    """Run jobs in this process, with the interface of `run_in_processes`."""
    for name, job in jobs.items():
        try:
            result = JobResult(name, job(reporter))
        except DivergedError as error:
            # The traceback would keep the member's images and network in memory.
            result = JobResult(name, error=error.with_traceback(None))
        yield result


def _collect_histories(results: Generator[JobResult], names: Sequence[str], reporter: Reporter) -> dict[str, History]:
    """Wait for all members and return their histories.

    Raises:
        DivergedError: One or more members diverged. The others are trained.
        Exception: Any other error of a member, which stops the others.
    """
    histories: dict[str, History] = {}
    diverged: list[DivergedError] = []
    with closing(results):
        for count, result in enumerate(results, start=1):
            if isinstance(result.error, DivergedError):
                diverged.append(result.error)
                reporter(MemberDiverged(result.name, result.error.message, n_remaining=len(names) - count))
            elif result.error is not None:
                raise result.error
            else:
                histories[result.name] = result.result
    if len(names) == 1 and diverged:
        raise diverged[0]
    if diverged:
        raise DivergedError(
            f"{len(diverged)} of {len(names)} members could not be trained: "
            + "; ".join(error.message for error in diverged),
            hint=diverged[0].hint,
            remedies=diverged[0].remedies,
        )
    return histories
