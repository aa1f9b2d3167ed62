"""Train the members of a recipe: one at a time, in processes, or interleaved on CUDA streams."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from fmcli.data import Splits, load_splits
from fmcli.errors import DivergedError
from fmcli.events import EpochFinished, MemberDiverged, Reporter, ignore
from fmcli.hardware.device import use_own_stream
from fmcli.recipe import Recipe
from fmcli.training.executors import Job, JobResult, run_in_processes, run_interleaved
from fmcli.training.fingerprint import PLANNED, check_fingerprint
from fmcli.training.loop import SAVE_INTERVAL_S, train_member
from fmcli.training.plan import RunPlan, choose_members, compute_fingerprints, plan_run
from fmcli.training.recipe_checks import load_checked_splits
from fmcli.training.run_folder import (
    check_folder,
    check_not_in_use,
    clean_run,
    locked,
    remove_run,
    write_recipe,
)

History = list[EpochFinished]


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    members: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    data_root: Path | None = None,
    save_after: float = SAVE_INTERVAL_S,
    jobs: int | None = 1,
    threads: int | None = None,
    reporter: Reporter = ignore,
) -> dict[str, History]:
    """Train the members of a recipe, one at a time or in parallel.

    The recipe, the images and the folder are checked before the first step.

    Args:
        recipe: The recipe.
        folder: The run's folder, e.g. `checkpoints/quick`.
        device: The training device.
        members: Names of the members to train; by default all.
        resume: Continue the run in the folder: keep finished members, and continue a partly trained one.
        overwrite: Remove the run in the folder first.
        data_root: Folder that is searched first for built-in datasets.
        save_after: Seconds between saves within one epoch.
        jobs: Members to train in parallel. None chooses the number (see `choose_concurrency`).
        threads: CPU threads per member. Default: a resumed run keeps its number; new members get equal shares.
        reporter: Receives events.

    Returns:
        The epochs of each requested member, by name.

    Raises:
        UsageError: The folder cannot be used, or the recipe has no such member.
        RunInUseError: Another process is training the run.
        DivergedError: The loss of a member is no longer finite. The remaining members are trained.
        CheckpointError: The results would differ from an uninterrupted run.
        RecipeError, DataError, DeviceError, FmcliError: See `loop.train_member`.
    """
    names = choose_members(recipe, members)
    check_folder(folder, recipe, resume=resume, overwrite=overwrite)
    check_not_in_use(folder)  # before loading the images, which may take minutes
    splits = load_checked_splits(recipe, data_root)
    with locked(folder):
        check_folder(folder, recipe, resume=resume, overwrite=overwrite)  # again: the folder may have changed
        plan = plan_run(recipe, names, folder, splits, device, resume=resume, jobs=jobs, threads=threads)
        if overwrite:
            remove_run(folder, recipe)
        clean_run(folder, recipe)
        write_recipe(folder, recipe)
        for event in plan.events(report_jobs=jobs is None):
            reporter(event)
        results = _train_members(plan, splits, reporter, data_root=data_root, save_after=save_after)
        del splits  # processes load their own copy
        return _collect_histories(results, names, reporter)


def _train_members(
    plan: RunPlan, splits: Splits, reporter: Reporter, *, data_root: Path | None, save_after: float
) -> Generator[JobResult]:
    """Train the members of a plan. Check the finished members first, to find damaged files before hours of training."""
    jobs = {name: partial(_train_member, plan, name, save_after, splits) for name in plan.members}
    yield from _run_one_at_a_time({name: jobs[name] for name in plan.members if name not in plan.remaining}, reporter)
    if plan.concurrency is None:
        yield from _run_one_at_a_time({name: jobs[name] for name in plan.remaining}, reporter)
    elif plan.uses_streams:
        streams = {name: partial(_train_on_stream, plan, name, save_after, splits) for name in plan.remaining}
        yield from run_interleaved(streams, plan.concurrency.jobs, reporter)
    else:
        del splits, jobs  # processes load their own copy of the images
        processes = {name: partial(_train_in_process, plan, name, save_after, data_root) for name in plan.remaining}
        yield from run_in_processes(processes, plan.concurrency.jobs, reporter)


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


def _train_on_stream(plan: RunPlan, name: str, save_after: float, splits: Splits, reporter: Reporter) -> History:
    with use_own_stream(plan.device):
        return _train_member(plan, name, save_after, splits, reporter)


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
            result = JobResult(name, error=error)
        yield result


def _collect_histories(results: Generator[JobResult], names: Sequence[str], reporter: Reporter) -> dict[str, History]:
    """Wait for all members and return their histories.

    Raises:
        DivergedError: At least one member diverged. The remaining members are trained.
        Exception: Any other error of a member. It stops all members.
    """
    histories: dict[str, History] = {}
    diverged: list[DivergedError] = []
    with closing(results):
        for count, result in enumerate(results, start=1):
            if isinstance(result.error, DivergedError):
                # The traceback would keep the member's images and network in memory.
                diverged.append(result.error.with_traceback(None))
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
    return {name: histories[name] for name in names}
