"""A run's folder: check, lock, clean and remove it, and write its recipe.

A run has a lock, and each of its members has one in its own folder. The process that trains a member holds the member's
lock. All processes look at the locks of members only while they hold the lock of the run, which they never hold for
long.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock

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
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, FmcliError, RecipeError, RunInUseError, UsageError, join_names, printable
from fmcli.recipe import Recipe, dump_recipe, load_recipe
from fmcli.recipe.differences import recipe_differences
from fmcli.storage import locks
from fmcli.storage.atomic import remove_files, remove_partial_files, write_atomic
from fmcli.training.fingerprint import MAX_LISTED_DIFFERENCES
from fmcli.training.state import STATE_FILE

CLAIM_FILE = ".claim.json"
"""File in the folder of a member in training: the fingerprint with which it is trained."""
TRAINED_FILES = (MODEL_FILE, STATE_FILE, HISTORY_FILE, *map(predictions_file, SPLITS))
RUN_LOCK_TIMEOUT_S = 60.0


@contextmanager
def locked(folder: Path, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock of a run, so that no other process can claim a member.

    Args:
        folder: The run's folder. Created if missing.
        timeout_s: Maximum time to wait, in seconds; negative for no limit. Default: `RUN_LOCK_TIMEOUT_S`.

    Raises:
        RunInUseError: Another process still holds the lock.
        FmcliError: The folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(folder, RUN_LOCK_TIMEOUT_S if timeout_s is None else timeout_s))
        except TimeoutError as error:
            raise _in_use_error(folder, "has locked") from error
        except OSError as error:
            raise _write_error(folder, error) from error
        yield


def locked_if_used(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run that processes have trained. Otherwise do nothing. Create no file."""
    return locked(folder) if os.path.isfile(folder / locks.LOCK_FILE) else nullcontext()


def members_in_use(folder: Path, recipe: Recipe) -> list[str]:
    """Return the names of the members that other processes are training. The caller holds the lock of the run.

    Args:
        folder: The run's folder.
        recipe: The recipe to train. The run in the folder may have a different one.
    """
    names = dict.fromkeys([*members_of_run(folder), *(member.name for member in recipe.members)])
    try:
        return [name for name in names if locks.is_locked(folder / name)]
    except OSError as error:
        raise _write_error(folder, error) from error


def check_run(
    folder: Path,
    recipe: Recipe,
    *,
    members: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    join: bool = True,
) -> list[str]:
    """Refuse a folder in which this process cannot train, and return the members that other processes are training.

    The caller holds the lock of the run, see `locked_if_used`.

    Args:
        folder: The run's folder, which may be missing.
        recipe: The recipe to train.
        members: Names of the members that the caller asked for; empty for all.
        resume: Continue the run in the folder.
        overwrite: Remove the run in the folder.
        join: Train the run together with other processes.

    Raises:
        UsageError: The folder contains something else, a run of a different recipe, or a run that no process trains
            although neither `resume` nor `overwrite` is set.
        RunInUseError: Other processes are training the run and `join` is not set, or `overwrite` is set, or they are
            training a member that the caller asked for.
        CheckpointError: The recipe in the folder is damaged.
    """
    if resume and overwrite:
        raise UsageError("a run can be resumed or overwritten, not both", remedies=["resume", "overwrite"])
    if not has_content(folder):
        return []
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError(f"{printable(folder)} exists, but is not a run of fmcli", remedies=["output"])
    in_use = members_in_use(folder, recipe)
    if in_use and (overwrite or not join):
        raise _in_use_error(folder)
    if overwrite:
        return []
    if not resume and not in_use:
        raise UsageError(f"{printable(folder)} already contains a run", remedies=["resume", "overwrite", "output"])
    differences = recipe_differences(_read_recipe(folder), recipe)
    if differences:
        raise UsageError(
            f"the run in {printable(folder)} was started with a different recipe:\n  "
            + "\n  ".join(differences[:MAX_LISTED_DIFFERENCES]),
            hint=f"restore these values to {'join' if in_use else 'resume'}",
            remedies=["output"] if in_use else ["overwrite", "output"],
        )
    claimed = [name for name in members if name in in_use and not (folder / name / MODEL_FILE).is_file()]
    if claimed:
        raise RunInUseError(
            f"another process is training {join_names(claimed)} in {printable(folder)}",
            hint="wait until it has finished, or train other members",
        )
    return in_use


def _write_error(folder: Path, error: OSError) -> FmcliError:
    return FmcliError(f"cannot write to {printable(folder)}: {error.strerror}", remedies=["output"])


def _in_use_error(folder: Path, doing: str = "is training") -> RunInUseError:
    return RunInUseError(
        f"another process {doing} the run in {printable(folder)}",
        hint="wait until it has finished",
        remedies=["output"],
    )


def has_content(folder: Path) -> bool:
    """Return whether the path is a file or a folder with content; hidden files do not count.

    Raises:
        UsageError: The path cannot be read.
    """
    try:
        if folder.is_dir():
            return any(not path.name.startswith(".") for path in folder.iterdir())  # hidden: locks, partial files
        return folder.is_file()
    except OSError as error:
        raise UsageError(f"cannot read {printable(folder)}: {error.strerror}", remedies=["output"]) from error


def _read_recipe(folder: Path) -> Recipe:
    try:
        return load_recipe(str(folder / RECIPE_FILE))
    except RecipeError as error:
        raise CheckpointError(error.message, hint="restore the file", remedies=["overwrite", "output"]) from error


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe of a run. A file with the same values is left unchanged, which keeps the user's comments."""
    if (folder / RECIPE_FILE).is_file():
        stored = _read_recipe(folder)
        if stored.model_copy(update={"description": recipe.description}) == recipe:
            return
    write_atomic(folder / RECIPE_FILE, dump_recipe(recipe).encode())


def clean_run(folder: Path, recipe: Recipe, in_use: Sequence[str]) -> None:
    """Remove files that a killed process left half-written.

    Args:
        folder: The run's folder.
        recipe: The recipe.
        in_use: Names of the members that other processes are training. Their files are kept.
    """
    remove_partial_files(folder, [RECIPE_FILE])
    for member in recipe.members:
        if member.name not in in_use:
            clean_member(folder / member.name)


def lock_member(folder: Path) -> FileLock | None:
    """Lock the folder of a member and return the lock, or None if another process holds it.

    Raises:
        FmcliError: The folder cannot be written to.
    """
    try:
        return locks.try_lock(folder)
    except OSError as error:
        raise _write_error(folder, error) from error


def clean_member(folder: Path) -> None:
    """Remove files that a killed process left in the folder of a member that no other process is training."""
    with suppress(OSError):  # a claim without a lock has no effect
        (folder / CLAIM_FILE).unlink()
    for weights_folder in (folder, folder / LAST_GOOD, *folder.glob("snapshot-*")):
        remove_partial_files(weights_folder, (*TRAINED_FILES, CLAIM_FILE))


def remove_run(folder: Path, recipe: Recipe) -> None:
    """Remove the files of a run, and no other files. The caller holds the lock of the run, and no member is in use.

    Args:
        folder: The run's folder.
        recipe: The recipe that will be trained there. Its members are also removed, because the folder may have no
            recipe.
    """
    for name in {*members_of_run(folder), *(member.name for member in recipe.members)}:
        path = folder / name
        if not path.is_dir() or path.is_symlink():
            continue
        remove_snapshots(path)
        remove_last_good(path)
        remove_files(path, (*TRAINED_FILES, CLAIM_FILE, locks.LOCK_FILE))
    (folder / RECIPE_FILE).unlink(missing_ok=True)


def remove_runs(runs: Mapping[Path, Recipe]) -> None:
    """Remove the trained files of all runs, or of none if a run cannot be removed.

    `train_run` with `resume` then trains them again.

    Args:
        runs: The recipes that will be trained, by folder.

    Raises:
        UsageError: A folder contains something else.
        RunInUseError: Another process is training a run.
    """
    existing = {folder: recipe for folder, recipe in runs.items() if has_content(folder)}
    with ExitStack() as stack:
        for folder, recipe in existing.items():
            with locked_if_used(folder):
                check_run(folder, recipe, overwrite=True)
            stack.enter_context(locked(folder))
            check_run(folder, recipe, overwrite=True)  # again: the folder may have changed
        for folder, recipe in existing.items():
            remove_run(folder, recipe)
            write_recipe(folder, recipe)  # so that a folder with other files is still recognized as a run
