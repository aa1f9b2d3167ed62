"""A run: every member of a recipe trained into one folder."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import read_header
from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import (
    LAST_GOOD,
    MODEL_FILE,
    RECIPE_FILE,
    members_of_run,
    remove_last_good,
    remove_snapshots,
)
from fmcli.choices import SPLITS
from fmcli.data import Splits, load_splits
from fmcli.data.recipe_checks import load_checked_splits
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import (
    CheckpointError,
    DivergedError,
    FmcliError,
    RecipeError,
    RunInUseError,
    UsageError,
    did_you_mean,
    printable,
)
from fmcli.events import EpochFinished, MemberDiverged, MembersInParallel, Reporter, ignore
from fmcli.hardware.device import use_bf16, use_own_stream
from fmcli.recipe import Recipe, dump_recipe, load_recipe
from fmcli.recipe.differences import recipe_differences
from fmcli.storage.atomic import remove_files, remove_partial_files, write_atomic
from fmcli.storage.locks import try_lock
from fmcli.training.concurrency import Share, share_out
from fmcli.training.executors import Job, JobResult, run_in_processes, run_interleaved
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.loop import SAVE_AFTER, train_member
from fmcli.training.state import STATE_FILE, load_state


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Args:
        folder: The run's folder.
        histories: For each member that was asked for, an entry an epoch.
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
    save_after: float = SAVE_AFTER,
    jobs: int | None = 1,
    threads: int | None = None,
    reporter: Reporter = ignore,
) -> RunResult:
    """Train members of a recipe, one after another or side by side.

    Everything that can be wrong with recipe, data and folder is found before the first step.

    Args:
        recipe: The recipe.
        folder: The run's folder, e.g. `checkpoints/quick`.
        device: Where to train.
        members: Which ones; by default all.
        resume: Go on with what is in the folder: finished members stay, a begun one goes on.
        overwrite: Remove the run that is in the folder first.
        data_root: Where to look first for built-in sources.
        save_after: Seconds, after which a long epoch is saved within itself, and again.
        jobs: How many members train at once; above 1, each in a process of its own (see `run_in_processes`), or on an
            NVIDIA GPU all in this one (see `run_interleaved`). None: what should be fastest (see `share_out`), or
            one, where `threads` are given.
        threads: CPU threads of each such process; by default, those that the run was begun with, or a share of those of
            this one. One by one, members train in this process, on its threads, which this does not set; but in a
            process of its own where the run was begun with fewer and this is None.
        reporter: Told of what happens.

    Returns:
        The histories.

    Raises:
        UsageError: The folder holds a run and neither `resume` nor `overwrite` is set, or holds something
            else; or a member is not in the recipe.
        RunInUseError: Another process is training it.
        DivergedError: The loss of a member is no longer finite; the others are trained.
        CheckpointError: What is left of the run would be trained otherwise than what is done of it; or on images that
            have changed since it began.
        RecipeError, DataError, CheckpointError, DeviceError, FmcliError: See `trainer.train_member`.
    """
    names = _choose_members(recipe, members)
    _check_folder(folder, recipe, resume=resume, overwrite=overwrite)
    if folder.is_dir():
        with _locked(folder):
            pass  # whether another process trains it is known before the images are read
    splits = load_checked_splits(recipe, data_root)
    with _locked(folder):
        _check_folder(folder, recipe, resume=resume, overwrite=overwrite)  # once more: others may have been faster
        plan = _plan(recipe, names, folder, splits, device, resume=resume, jobs=jobs, threads=threads)
        if overwrite:
            remove_run(folder, recipe)
        _sweep(folder, recipe)
        if not _has_recipe(folder, recipe):  # comments that a user has added to the file are kept
            _write_recipe(folder, recipe)
        if plan.share is not None and plan.share.jobs > 1 and jobs is None:
            reporter(MembersInParallel(plan.share.jobs, plan.share.threads, plan.share.speedup))
        ends = _train_members(
            recipe,
            names,
            folder,
            splits,
            plan,
            reporter,
            device=device,
            data_root=data_root,
            resume=resume,
            save_after=save_after,
        )
        del splits  # processes have their own
        histories = _gather(ends, names, reporter)
    return RunResult(folder, {name: histories[name] for name in names})


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a run has left to do, and how.

    Args:
        left: The members that are to be trained, and not finished.
        share: How they train at once; None: one by one in this process.
        fingerprint: With what each member of the recipe is trained.
    """

    left: list[str]
    share: Share | None
    fingerprint: dict[str, Fingerprint]


def _plan(
    recipe: Recipe,
    names: Sequence[str],
    folder: Path,
    splits: Splits,
    device: torch.device,
    *,
    resume: bool,
    jobs: int | None,
    threads: int | None,
) -> _Plan:
    """Return what is left to do.

    Raises:
        CheckpointError: It would be trained otherwise than what is done of the run.
    """
    finished = [one.name for one in recipe.members if resume and (folder / one.name / MODEL_FILE).is_file()]
    left = [name for name in names if name not in finished]
    earlier = _read_earlier(folder, recipe, finished, left) if resume and left else {}
    kept = next((one.threads for one in earlier.values()), None)
    share = share_out(recipe, left, splits, device, jobs=jobs, threads=threads, kept=kept)
    fingerprint = _fingerprints(recipe, splits, device, share.threads if share is not None else None)
    for name, before in earlier.items():
        check = fingerprint[name].check if name in left else fingerprint[name].check_finished
        check(before, member=name, folder=folder)
    return _Plan(left, share, fingerprint)


def _train_members(
    recipe: Recipe,
    names: Sequence[str],
    folder: Path,
    splits: Splits,
    plan: _Plan,
    reporter: Reporter,
    *,
    device: torch.device,
    data_root: Path | None,
    resume: bool,
    save_after: float,
) -> Generator[JobResult]:
    """Train members as planned: here, or in processes of their own.

    What is finished comes first: if it is damaged, that is found before hours of training.
    """
    works = {
        name: partial(_train, recipe, name, folder, device=device, resume=resume, save_after=save_after)
        for name in names
    }
    here = {name: partial(works[name], splits) for name in names}
    yield from _one_by_one({name: here[name] for name in names if name not in plan.left}, reporter)
    left = {name: here[name] for name in plan.left}
    if plan.share is None:
        yield from _one_by_one(left, reporter)
    elif _computes_on_streams(device):
        yield from run_interleaved(left, plan.share.jobs, reporter, within=partial(use_own_stream, device))
    else:
        del splits, here, left  # each process has its own
        apart = {
            name: partial(_train_apart, works[name], recipe, name, plan.fingerprint[name], device, data_root)
            for name in plan.left
        }
        yield from run_in_processes(apart, plan.share.jobs, reporter)


def _gather(ends: Generator[JobResult], names: Sequence[str], reporter: Reporter) -> dict[str, list[EpochFinished]]:
    """Wait for all members, and return their histories.

    Raises:
        DivergedError: Some diverged; the others are trained.
        Exception: What else went wrong with one, at which the others are stopped.
    """
    histories: dict[str, list[EpochFinished]] = {}
    diverged: list[DivergedError] = []
    with closing(ends):
        for count, ended in enumerate(ends, start=1):
            if isinstance(ended.error, DivergedError):
                diverged.append(ended.error)
                reporter(MemberDiverged(ended.name, ended.error.message, n_remaining=len(names) - count))
            elif ended.error is not None:
                raise ended.error
            else:
                histories[ended.name] = ended.result
    if len(names) == 1 and diverged:
        raise diverged[0]
    if diverged:
        raise DivergedError(
            f"{len(diverged)} of {len(names)} members could not be trained: "
            + "; ".join(error.message for error in diverged),
            hint=diverged[0].hint,
        )
    return histories


def _train(
    recipe: Recipe,
    name: str,
    folder: Path,
    splits: Splits,
    reporter: Reporter,
    *,
    device: torch.device,
    resume: bool,
    save_after: float,
) -> list[EpochFinished]:
    return train_member(
        recipe,
        name,
        splits,
        folder / name,
        device=device,
        resume=resume,
        save_after=save_after,
        reporter=reporter,
    )


def _train_apart(
    train: Callable[[Splits, Reporter], list[EpochFinished]],
    recipe: Recipe,
    name: str,
    planned: Fingerprint,
    device: torch.device,
    data_root: Path | None,
    reporter: Reporter,
) -> list[EpochFinished]:
    """Train a member in a process that has nothing yet; all that could be wrong when the run began was found then."""
    torch.set_num_threads(planned.threads)
    splits = load_splits(recipe.data, data_root)
    _fingerprints(recipe, splits, device)[name].check_unchanged(planned, member=name)
    return train(splits, reporter)


def _fingerprints(
    recipe: Recipe, splits: Splits, device: torch.device, threads: int | None = None
) -> dict[str, Fingerprint]:
    """Return with what each member is trained, in this process or in one of so many threads."""
    return {
        member.name: Fingerprint.of(
            member, recipe, splits, device, bf16=use_bf16(member.trainer.precision, device), threads=threads
        )
        for member in recipe.members
    }


def _computes_on_streams(device: torch.device) -> bool:
    """Tell whether several members can compute at once in one process, as on an NVIDIA GPU.

    There, processes would take turns of milliseconds, in each of which one computes alone.
    """
    return device.type == "cuda"


def _one_by_one(works: Mapping[str, Job], reporter: Reporter) -> Generator[JobResult]:
    """Do what `run_in_processes` does, in this process."""
    for name, work in works.items():
        try:
            ended = JobResult(name, work(reporter))
        except DivergedError as error:
            ended = JobResult(name, error=error.with_traceback(None))  # which would keep its images and network
        yield ended


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same run."""
    try:
        lock = try_lock(folder)
    except OSError as error:
        raise FmcliError(
            f"cannot write to {printable(folder)}: {error.strerror}", hint="choose another folder with --output"
        ) from error
    if lock is None:
        raise RunInUseError(
            f"another process is training the run in {printable(folder)}",
            hint="wait for it; --output trains elsewhere",
        )
    try:
        yield
    finally:
        lock.release()


def _read_earlier(folder: Path, recipe: Recipe, finished: Sequence[str], left: Sequence[str]) -> dict[str, Fingerprint]:
    """Return with what the members of a run were trained that are finished or begun.

    Raises:
        CheckpointError: One does not tell, or is damaged. Of those that are begun, and neither finished nor left to be
            trained now, such are passed over.
    """
    earlier = {}
    for name in (member.name for member in recipe.members):
        if name in finished:
            earlier[name] = Fingerprint.of_header(read_header(folder / name))
        elif (state := folder / name / STATE_FILE).is_file():
            with nullcontext() if name in left else suppress(CheckpointError):
                earlier[name] = load_state(state).fingerprint
    return earlier


def _choose_members(recipe: Recipe, wanted: Sequence[str]) -> list[str]:
    names = [member.name for member in recipe.members]
    for name in wanted:
        if name not in names:
            raise UsageError(
                f"recipe {printable(recipe.name)} has no member {printable(name)!r}; {did_you_mean(name, names)}",
                hint=f"its members: {', '.join(names)}",
            )
    return [name for name in names if not wanted or name in wanted]


def _check_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("--resume keeps a run and --overwrite removes it: give one of them")
    if not _holds_anything(folder):
        return
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError(
            f"{printable(folder)} exists and is not a run of fmcli",
            hint="choose another folder with --output",
        )
    if not resume and not overwrite:
        raise UsageError(
            f"{printable(folder)} already holds a run",
            hint="--resume goes on with it; --overwrite starts afresh; --output trains elsewhere",
        )
    if resume:
        _check_same_recipe(_recipe_of(folder), recipe, folder)


def _recipe_of(folder: Path) -> Recipe:
    """Return what a run was begun with.

    Raises:
        CheckpointError: The file that says so is damaged.
    """
    try:
        return load_recipe(str(folder / RECIPE_FILE))
    except RecipeError as error:
        raise CheckpointError(
            error.message, hint="bring the file back; --overwrite starts afresh; --output trains elsewhere"
        ) from error


def _holds_anything(folder: Path) -> bool:
    """Tell whether there is a file, or a folder that is not empty.

    Raises:
        UsageError: That cannot be told.
    """
    try:
        if folder.is_dir():
            return any(not path.name.startswith(".") for path in folder.iterdir())  # a lock, a torn file
        return folder.exists() and not folder.is_dir()  # which another process may just have made
    except OSError as error:
        raise UsageError(
            f"cannot use {printable(folder)}: {error.strerror}", hint="choose another folder with --output"
        ) from error


def _check_same_recipe(old: Recipe, new: Recipe, folder: Path) -> None:
    """Refuse to resume with another recipe, saying where the two differ; its name and reference may."""
    differences = recipe_differences(old, new)
    if differences:
        raise UsageError(
            f"{printable(folder)} was begun with another recipe:\n  " + "\n  ".join(differences[:10]),
            hint="drop the change to resume; --overwrite starts afresh; --output trains elsewhere",
        )


_OF_MEMBERS = (MODEL_FILE, STATE_FILE, HISTORY_FILE, *map(predictions_file, SPLITS))


def _sweep(folder: Path, recipe: Recipe) -> None:
    """Remove what processes left that were killed while they wrote."""
    remove_partial_files(folder, [RECIPE_FILE])
    for member in recipe.members:
        for place in (
            folder / member.name,
            folder / member.name / LAST_GOOD,
            *(folder / member.name).glob("snapshot-*"),
        ):
            remove_partial_files(place, _OF_MEMBERS)


def remove_runs(runs: Mapping[Path, Recipe]) -> None:
    """Remove what is trained of runs, of all or of none; `train_run` trains them again with `resume`.

    Args:
        runs: By folder, the recipes that will be trained there.

    Raises:
        UsageError: A folder holds something else.
        RunInUseError: Another process is training one.
    """
    there = {folder: recipe for folder, recipe in runs.items() if _holds_anything(folder)}
    with ExitStack() as locks:
        for folder, recipe in there.items():
            _check_folder(folder, recipe, resume=False, overwrite=True)
            locks.enter_context(_locked(folder))
        for folder, recipe in there.items():
            remove_run(folder, recipe)
            _write_recipe(folder, recipe)  # by which a folder that holds other files, too, is still a run's


def _has_recipe(folder: Path, recipe: Recipe) -> bool:
    """Return whether the folder's recipe file has the same values; its comments may differ."""
    if not (folder / RECIPE_FILE).is_file():
        return False
    stored = _recipe_of(folder)
    return stored.model_copy(update={"description": recipe.description}) == recipe


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    write_atomic(folder / RECIPE_FILE, dump_recipe(recipe).encode())


def remove_run(folder: Path, recipe: Recipe) -> None:
    """Remove the files of a run's members, of the old recipe and the new, and nothing that is not ours."""
    for name in {*members_of_run(folder), *(member.name for member in recipe.members)}:
        place = folder / name
        if not place.is_dir() or place.is_symlink():
            continue
        remove_snapshots(place)
        remove_last_good(place)
        remove_files(place, _OF_MEMBERS)
    (folder / RECIPE_FILE).unlink(missing_ok=True)
