"""A run's folder: check, lock, clean and remove it, and write its recipe."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
from fmcli.errors import CheckpointError, FmcliError, RecipeError, RunInUseError, UsageError, printable
from fmcli.recipe import Recipe, dump_recipe, load_recipe
from fmcli.recipe.differences import recipe_differences
from fmcli.storage.atomic import remove_files, remove_partial_files, write_atomic
from fmcli.storage.locks import try_lock
from fmcli.training.fingerprint import MAX_LISTED_DIFFERENCES
from fmcli.training.state import STATE_FILE

MEMBER_FILES = (MODEL_FILE, STATE_FILE, HISTORY_FILE, *map(predictions_file, SPLITS))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run, so that no other process trains it.

    Raises:
        RunInUseError: Another process holds the lock.
        FmcliError: The folder cannot be written to.
    """
    try:
        lock = try_lock(folder)
    except OSError as error:
        raise FmcliError(f"cannot write to {printable(folder)}: {error.strerror}", remedies=["output"]) from error
    if lock is None:
        raise RunInUseError(
            f"another process is training the run in {printable(folder)}",
            hint="wait until it has finished",
            remedies=["output"],
        )
    try:
        yield
    finally:
        lock.release()


def check_not_in_use(folder: Path) -> None:
    """Refuse a run that another process is training.

    Raises:
        RunInUseError: Another process holds the lock.
        FmcliError: The folder cannot be written to.
    """
    if folder.is_dir():
        with locked(folder):
            pass


def check_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder in which a run can neither start nor resume.

    Args:
        folder: The run's folder, which may be missing.
        recipe: The recipe to train.
        resume: Continue the run in the folder.
        overwrite: Remove the run in the folder.

    Raises:
        UsageError: The folder contains something else, a run of a different recipe, or a run although neither
            `resume` nor `overwrite` is set.
        CheckpointError: The recipe in the folder is damaged.
    """
    if resume and overwrite:
        raise UsageError("a run can be resumed or overwritten, not both", remedies=["resume", "overwrite"])
    if not has_content(folder):
        return
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError(f"{printable(folder)} exists, but is not a run of fmcli", remedies=["output"])
    if not resume and not overwrite:
        raise UsageError(f"{printable(folder)} already contains a run", remedies=["resume", "overwrite", "output"])
    differences = recipe_differences(_read_recipe(folder), recipe) if resume else []
    if differences:
        raise UsageError(
            f"the run in {printable(folder)} was started with a different recipe:\n  "
            + "\n  ".join(differences[:MAX_LISTED_DIFFERENCES]),
            hint="restore these values to resume",
            remedies=["overwrite", "output"],
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


def clean_run(folder: Path, recipe: Recipe) -> None:
    """Remove files that a killed process left half-written."""
    remove_partial_files(folder, [RECIPE_FILE])
    for member in recipe.members:
        path = folder / member.name
        for weights_folder in (path, path / LAST_GOOD, *path.glob("snapshot-*")):
            remove_partial_files(weights_folder, MEMBER_FILES)


def remove_run(folder: Path, recipe: Recipe) -> None:
    """Remove the files of a run, and no other files.

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
        remove_files(path, MEMBER_FILES)
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
    with ExitStack() as locks:
        for folder, recipe in existing.items():
            check_folder(folder, recipe, resume=False, overwrite=True)
            locks.enter_context(locked(folder))
        for folder, recipe in existing.items():
            remove_run(folder, recipe)
            write_recipe(folder, recipe)  # so that a folder with other files is still recognized as a run
