"""Optuna's study of a search: the file that keeps it, and what it says of the search."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna

from fmcli.errors import FmcliError, UsageError, printable
from fmcli.experiments.search.journal import open_journal
from fmcli.experiments.search.plan import Search
from fmcli.recipe import Recipe
from fmcli.recipe.differences import recipe_differences, show_differences
from fmcli.recipe.search import SearchSpec

JOURNAL = "trials.journal"
_STUDY = "fmcli-search"
_RECIPE = "fmcli recipe"  # a study's attribute
_SEARCH = "fmcli search"
_CIRCUMSTANCES = "fmcli fingerprint"


def open_study(search: Search, *, resume: bool, fingerprint: Mapping[str, str]) -> optuna.Study:
    """Make the study of a search, or open the one that is there.

    Args:
        search: What it is about.
        resume: There may be one.
        fingerprint: What must stay the same for scores to be comparable, by what people call it.

    Raises:
        UsageError: There is one and `resume` is not set, or it is of something else.
    """
    place = search.folder / JOURNAL
    if place.exists() and not resume:
        raise UsageError(
            f"{printable(search.folder)} already holds a search",
            hint="--resume goes on with it or joins it; --output searches elsewhere",
        )
    if place.exists() and not place.is_file():
        raise UsageError(f"{printable(place)} is not a file", hint="--output searches elsewhere")
    with _explained(place):
        search.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=open_journal(place, mend=True), study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        _check_study(study, search, place, fingerprint)
    return study


def load_study(folder: Path) -> tuple[optuna.Study, Recipe, SearchSpec]:
    """Return the study that a search's folder holds, and what it is about.

    Raises:
        UsageError: It holds none.
    """
    place = folder / JOURNAL
    if not place.is_file():
        raise UsageError(f"there is no search in {printable(folder)}", hint="fmcli search --recipe … makes one")
    with _explained(place):
        study = optuna.load_study(study_name=_STUDY, storage=open_journal(place, mend=False))
        recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
        spec = SearchSpec.model_validate_json(study.user_attrs[_SEARCH])
    return study, recipe, spec


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn what Optuna and pydantic raise on a file that is not a search into one error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except FmcliError:
        raise
    except OSError as error:
        raise FmcliError(f"cannot use {printable(place)}: {error.strerror or error}") from error
    except Exception as error:
        raise UsageError(
            f"{printable(place)} holds no search of fmcli: {_first_line(error)}",
            hint="give another folder with --output",
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(printable(error).splitlines()), type(error).__name__)


def _check_study(study: optuna.Study, search: Search, place: Path, fingerprint: Mapping[str, str]) -> None:
    """Note in a new study what it searches; refuse one that searches something else."""
    recipe = search.recipe.model_copy(update={"search": None})
    if _RECIPE not in study.user_attrs:
        if study.trials:
            raise UsageError(
                f"{printable(place)} holds trials that are not fmcli's", hint="give another folder with --output"
            )
        study.set_user_attr(_SEARCH, search.spec.model_dump_json())
        study.set_user_attr(_CIRCUMSTANCES, json.dumps(dict(fingerprint)))
        study.set_user_attr(_RECIPE, recipe.model_dump_json())
        return
    begun: dict[str, str] = json.loads(study.user_attrs[_CIRCUMSTANCES])
    for name in sorted({*begun, *fingerprint}):
        before, now = begun.get(name, "none"), fingerprint.get(name, "none")
        if before != now:
            raise UsageError(
                f"{printable(place)} was begun with {name} {before}, and now it is {now}",
                hint="bring it back to resume; --output searches elsewhere",
            )
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
