"""Train a run: every member of a recipe, into one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.data.recipe_checks import load_checked_splits
from fmcli.events import EpochFinished, MembersInParallel, Reporter, ignore
from fmcli.recipe import Recipe
from fmcli.training.execute import execute
from fmcli.training.loop import SAVE_INTERVAL_S
from fmcli.training.plan import choose_members, plan_run
from fmcli.training.run_folder import (
    check_folder,
    check_not_in_use,
    clean_run,
    locked,
    remove_run,
    write_recipe,
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run.

    Args:
        folder: The run's folder.
        histories: The epochs of each requested member.
    """

    folder: Path
    histories: dict[str, list[EpochFinished]]


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
) -> RunResult:
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
        jobs: Members to train in parallel. Above 1, each trains in its own process (see `run_in_processes`), or on an
            NVIDIA GPU all in this process (see `run_interleaved`). None chooses the number by an estimate (see
            `choose_concurrency`); with `threads`, None trains one member at a time.
        threads: CPU threads of each such process. By default, a resumed run keeps its number of threads, and a new
            run divides the threads of this process. One member at a time trains in this process, on its current
            threads; but if the run was started with fewer threads, it trains in a new process with that number.
        reporter: Receives events.

    Returns:
        The folder and the histories.

    Raises:
        UsageError: The folder holds a run and neither `resume` nor `overwrite` is set, or it holds something else; or
            a member is not in the recipe.
        RunInUseError: Another process is training the run.
        DivergedError: The loss of a member is no longer finite. The others are trained.
        CheckpointError: The results would differ from those of the earlier process, or the images have changed since
            the run started.
        RecipeError, DataError, CheckpointError, DeviceError, FmcliError: See `loop.train_member`.
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
        for event in plan.unmeasured_features():
            reporter(event)
        concurrency = plan.concurrency
        if concurrency is not None and concurrency.jobs > 1 and jobs is None:
            reporter(MembersInParallel(concurrency.jobs, concurrency.threads, concurrency.speedup))
        return RunResult(folder, execute(plan, splits, reporter, data_root=data_root, save_after=save_after))
