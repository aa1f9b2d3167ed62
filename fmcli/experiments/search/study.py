"""Open the Optuna study of a search, and check that it has the same recipe and images."""

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
# Names of the study's attributes.
_RECIPE = "fmcli recipe"
_SPEC = "fmcli search"
_FINGERPRINT = "fmcli fingerprint"


def open_study(search: Search, *, resume: bool, fingerprint: Mapping[str, str]) -> optuna.Study:
    """Create or open the study of a search.

    Args:
        search: The search.
        resume: Accept an existing study.
        fingerprint: Digests and versions by name. Scores are only comparable if they stay the same. The names appear in
            error messages.

    Raises:
        UsageError: A study exists and `resume` is not set, or the study is for a different search.
    """
    path = search.folder / JOURNAL
    if path.exists() and not resume:
        raise UsageError(f"{printable(search.folder)} already has a search", remedies=["resume", "output"])
    if path.exists() and not path.is_file():
        raise UsageError(f"{printable(path)} is not a file", remedies=["output"])
    with _readable_errors(path):
        search.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=open_journal(path, repair=True), study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        _check_study(study, search, path, fingerprint)
    return study


def load_study(folder: Path) -> tuple[optuna.Study, Recipe, SearchSpec]:
    """Return the study in a folder, its recipe and its `[search]` table.

    Raises:
        UsageError: There is no search in the folder.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise UsageError(f"there is no search in {printable(folder)}", remedies=["start-search"])
    with _readable_errors(path):
        study = optuna.load_study(study_name=_STUDY, storage=open_journal(path, repair=False))
        recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
        spec = SearchSpec.model_validate_json(study.user_attrs[_SPEC])
    return study, recipe, spec


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Convert every exception that Optuna and pydantic raise for a damaged file to one type of error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except FmcliError:
        raise
    except OSError as error:
        raise FmcliError(f"cannot read or write {printable(path)}: {error.strerror or error}") from error
    except Exception as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"{printable(path)} is damaged or was not written by fmcli: {printable(problem)}", remedies=["output"]
        ) from error


def _check_study(study: optuna.Study, search: Search, path: Path, fingerprint: Mapping[str, str]) -> None:
    """Record the recipe and the fingerprint in a new study, or compare them with the values in an existing study.

    Raises:
        UsageError: The existing study has a different recipe, fingerprint or `[search]` table.
    """
    recipe = search.recipe.model_copy(update={"search": None})
    if _RECIPE not in study.user_attrs:
        study.set_user_attr(_SPEC, search.spec.model_dump_json())
        study.set_user_attr(_FINGERPRINT, json.dumps(dict(fingerprint)))
        study.set_user_attr(_RECIPE, recipe.model_dump_json())
        return
    old_spec = SearchSpec.model_validate_json(study.user_attrs[_SPEC])
    old, new = (spec.model_dump(mode="json", exclude={"trials"}) for spec in (old_spec, search.spec))
    differences = [
        *show_differences(json.loads(study.user_attrs[_FINGERPRINT]), dict(fingerprint)),
        *recipe_differences(Recipe.model_validate_json(study.user_attrs[_RECIPE]), recipe),
        *show_differences(old, new, "search"),
    ]
    if differences:
        raise UsageError(
            f"the search in {printable(path)} was started with different values:\n  " + "\n  ".join(differences[:10]),
            hint="to resume, restore the earlier values",
            remedies=["output"],
        )
    if old_spec.trials != search.spec.trials:
        study.set_user_attr(_SPEC, search.spec.model_dump_json())
