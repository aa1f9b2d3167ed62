"""Train the members of a recipe: check, plan, claim and execute."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from fmcli.checkpoints.history import read_history
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import ExecutorName
from fmcli.data import load_splits
from fmcli.errors import DivergedError
from fmcli.events import EpochFinished, MemberDiverged, MemberFinished, Reporter, TrainedElsewhere, ignore
from fmcli.recipe import Recipe
from fmcli.training.claims import Claims
from fmcli.training.concurrency import limit_jobs
from fmcli.training.execute import execute
from fmcli.training.executors import JobResult
from fmcli.training.loop import SAVE_INTERVAL_S
from fmcli.training.plan import choose_members, plan_run
from fmcli.training.recipe_checks import check_recipe
from fmcli.training.run_folder import check_run, clean_run, locked, locked_if_used, remove_run, write_recipe

History = list[EpochFinished]


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    members: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    join: bool = True,
    data_root: Path | None = None,
    save_after: float = SAVE_INTERVAL_S,
    jobs: int | None = 1,
    threads: int | None = None,
    executor: ExecutorName | None = None,
    reporter: Reporter = ignore,
) -> dict[str, History]:
    """Train the members of a recipe that no other process trains, one at a time or in parallel.

    The recipe, the images and the folder are checked before the first step.

    Args:
        recipe: The recipe.
        folder: The run's folder, e.g. `checkpoints/quick`.
        device: The training device.
        members: Names of the members to train; by default all.
        resume: Continue the run in the folder: keep finished members, and continue a partly trained one.
        overwrite: Remove the run in the folder first.
        join: If other processes are training the run, train the members that they have not claimed.
        data_root: Folder that is searched first for built-in datasets.
        save_after: Seconds between saves within one epoch.
        jobs: Members to train in parallel. None chooses the number (see `choose_concurrency`).
        threads: CPU threads per member. Default: a resumed or joined run keeps its number; new members get equal
            shares.
        executor: How the members are trained. Default: `sequential` for one job; otherwise `cuda_streams` on an NVIDIA
            GPU and `processes` on other devices.
        reporter: Receives events.

    Returns:
        The epochs of each requested member, by name, without members that other processes are still training.

    Raises:
        UsageError: The folder cannot be used, or the recipe has no such member.
        RunInUseError: Another process is training the run, see `check_run`.
        DivergedError: The loss of a member is no longer finite. The remaining members are trained.
        CheckpointError: The results would differ from an uninterrupted run.
        RecipeError, DataError, DeviceError, FmcliError: See `loop.train_member`.
    """
    limit_jobs(executor, jobs)
    names = choose_members(recipe, members)
    with locked_if_used(folder):  # check before loading the images, which may take minutes
        check_run(folder, recipe, members=members, resume=resume, overwrite=overwrite, join=join)
    splits = load_splits(recipe.data, data_root)
    traces = check_recipe(recipe, splits)
    with closing(Claims(folder)) as claims:
        with locked(folder):
            plan = plan_run(
                recipe,
                folder,
                splits,
                device,
                members=members,
                resume=resume,
                overwrite=overwrite,
                join=join,
                jobs=jobs,
                threads=threads,
                executor=executor,
                traces=traces,
            )
            if overwrite:
                remove_run(folder, recipe)
            clean_run(folder, recipe, plan.in_use)
            write_recipe(folder, recipe)
            claims.start(plan.named("claimed", "resumes", "starts"), plan.fingerprints)
        for event in plan.events(report_jobs=jobs is None):
            reporter(event)
        results = execute(plan, claims, splits, reporter, data_root=data_root, save_after=save_after)
        del splits  # other processes load their own copy
        return _collect_histories(results, folder, names, reporter)


def _collect_histories(
    results: Generator[JobResult], folder: Path, names: Sequence[str], reporter: Reporter
) -> dict[str, History]:
    """Wait for all members and return their histories.

    Raises:
        DivergedError: At least one member diverged. The remaining members are trained.
        Exception: Any other error of a member. It stops all members.
    """
    histories: dict[str, History] = {}
    diverged: dict[str, DivergedError] = {}
    with closing(results):
        for count, result in enumerate(results, start=1):
            if isinstance(result.error, DivergedError):
                # The traceback would keep the member's images and network in memory.
                diverged[result.name] = result.error.with_traceback(None)
                reporter(MemberDiverged(result.name, result.error.message, n_remaining=len(names) - count))
            elif result.error is not None:
                raise result.error
            else:
                histories[result.name] = result.result
    _collect_others([name for name in names if name not in {*histories, *diverged}], folder, histories, reporter)
    if len(names) == 1 and diverged:
        raise diverged[names[0]]
    if diverged:
        first = next(iter(diverged.values()))
        raise DivergedError(
            f"{len(diverged)} of {len(names)} members could not be trained: "
            + "; ".join(error.message for error in diverged.values()),
            hint=first.hint,
            remedies=first.remedies,
        )
    return {name: histories[name] for name in names if name in histories}


def _collect_others(names: Sequence[str], folder: Path, histories: dict[str, History], reporter: Reporter) -> None:
    """Add the histories of members that other processes have trained, and report those still in training."""
    for name in names:
        path = folder / name / MODEL_FILE
        if path.is_file():
            reporter(MemberFinished(name, path, already_trained=True))
            histories[name] = read_history(folder / name)
    elsewhere = [name for name in names if name not in histories]
    if elsewhere:
        reporter(TrainedElsewhere(elsewhere))
