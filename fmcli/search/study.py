"""Optuna's study of a search: the file that keeps it, and what it says of the search."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL

from fmcli.choices import Storage
from fmcli.errors import FmcliError, UsageError, printable
from fmcli.recipe import Recipe
from fmcli.recipe.differences import recipe_differences, show_differences
from fmcli.recipe.specs import SearchSpec
from fmcli.search.plan import Search

STORAGE_FILES: dict[Storage, str] = {"journal": "trials.journal", "sqlite": "trials.db"}
_STUDY = "fmcli-search"
_RECIPE = "fmcli recipe"  # a study's attribute
_SEARCH = "fmcli search"


def open_study(search: Search, storage: Storage | None, *, resume: bool) -> optuna.Study:
    """Make the study of a search, or open the one that is there.

    Args:
        search: What it is about.
        storage: What kind of file keeps it.
        resume: There may be one.

    Raises:
        UsageError: There is one and `resume` is not set, or it is of something else.
    """
    kinds: dict[Storage, Path] = {kind: search.folder / name for kind, name in STORAGE_FILES.items()}
    there = [kind for kind, path in kinds.items() if path.exists()]
    place = kinds[storage or (there[0] if there else "journal")]
    if there and not resume:
        raise UsageError(
            f"{printable(search.folder)} already holds a search",
            hint="--resume goes on with it or joins it; --output searches elsewhere",
        )
    if there and not place.exists():
        raise UsageError(f"{printable(search.folder)} keeps its trials as {there[0]}", hint="leave out --storage")
    with _explained(place):
        search.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=_storage_of(place, mend=True), study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        _check_study(study, search, place)
    return study


def load_study(folder: Path) -> tuple[optuna.Study, Recipe, SearchSpec]:
    """Return the study that a search's folder holds, and what it is about.

    Raises:
        UsageError: It holds none.
    """
    there = [folder / name for name in STORAGE_FILES.values() if (folder / name).is_file()]
    if not there:
        raise UsageError(f"there is no search in {printable(folder)}", hint="fmcli search --recipe … makes one")
    with _explained(there[0]):
        study = optuna.load_study(study_name=_STUDY, storage=_storage_of(there[0], mend=False))
        recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
        spec = SearchSpec.model_validate_json(study.user_attrs[_SEARCH])
    return study, recipe, spec


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy and pydantic raise on a file that is not a search into one error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except FmcliError:
        raise
    except OSError as error:
        raise FmcliError(f"cannot use {printable(place)}: {error.strerror or error}") from error
    except optuna.exceptions.StorageInternalError as error:
        raise FmcliError(
            f"cannot use {printable(place)}: {printable(error.__cause__ or error).splitlines()[0]}",
            hint="check that file, its rights and the disk",
        ) from error
    except Exception as error:
        raise UsageError(
            f"{printable(place)} holds no search of fmcli: {printable(error).splitlines()[0]}",
            hint="give another folder with --output",
        ) from error


def _storage_of(place: Path, *, mend: bool) -> BaseStorage:
    if place.name == STORAGE_FILES["sqlite"]:
        url = URL.create("sqlite", database=str(place))
        return RDBStorage(url.render_as_string(), engine_kwargs={"connect_args": {"timeout": 60}})
    lock = _JournalLock(place)
    if mend:
        lock.acquire()
        try:
            _cut_torn_line(place)
        finally:
            lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(place), lock_obj=lock))  # type: ignore[arg-type]


class _JournalLock:
    """What Optuna locks its journal with; its own locks outlive a process that is killed."""

    def __init__(self, place: Path) -> None:
        self._lock = FileLock(place.with_name(f".{place.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Leave it to the next."""
        self._lock.release()


def _cut_torn_line(place: Path) -> None:
    """Remove what a process wrote of a line before it was killed; what comes after would make it unreadable."""
    if not place.is_file():
        return
    content = place.read_bytes()
    if content and not content.endswith(b"\n"):
        with place.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _check_study(study: optuna.Study, search: Search, place: Path) -> None:
    """Note in a new study what it searches; refuse one that searches something else."""
    recipe = search.recipe.model_copy(update={"search": None})
    if _RECIPE not in study.user_attrs:
        if study.trials:
            raise UsageError(
                f"{printable(place)} holds trials that are not fmcli's", hint="give another folder with --output"
            )
        study.set_user_attr(_SEARCH, search.spec.model_dump_json())
        study.set_user_attr(_RECIPE, recipe.model_dump_json())
        return
    old_recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
    old_spec = SearchSpec.model_validate_json(study.user_attrs[_SEARCH])
    old, new = (spec.model_dump(mode="json", exclude={"trials"}) for spec in (old_spec, search.spec))
    differences = recipe_differences(old_recipe, recipe) + show_differences(old, new, "search")
    if differences:
        raise UsageError(
            f"{printable(place)} is a search over another recipe:\n  " + "\n  ".join(differences[:10]),
            hint="drop the change to resume; --output searches elsewhere",
        )
    if old_spec.trials != search.spec.trials:
        study.set_user_attr(_SEARCH, search.spec.model_dump_json())
