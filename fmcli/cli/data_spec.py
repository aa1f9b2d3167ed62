"""Find the `[data]` table for a word on the command line: a source, recipe, run, checkpoint or ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.choices import SOURCE_FORMS
from fmcli.errors import FmcliError, RecipeError, printable

if TYPE_CHECKING:
    from fmcli.recipe import DataSpec


def find_data_spec(word: str) -> DataSpec:
    """Return the `[data]` table of a source, recipe, run, checkpoint, ensemble file or pack.

    Args:
        word: A source such as `folder:pets`, the name of a shipped recipe, or a path.

    Raises:
        RecipeError: `word` is none of these, or it is a recipe with errors, or a source without its prefix.
        CheckpointError: The path exists but has no checkpoint.
        UsageError: The path has predictions, which have no `[data]` table.
    """
    from pydantic import ValidationError

    from fmcli.recipe import DataSpec, load_recipe, shipped_recipes

    path = Path(word)
    if word in shipped_recipes() or (word.endswith(".toml") and not _is_ensemble(path)):
        return load_recipe(word).data
    try:
        return DataSpec(source=word)
    except ValidationError as error:
        if not path.exists():
            raise RecipeError(
                f"no such source, recipe or run: {printable(word)}",
                hint=f"give {', '.join(SOURCE_FORMS.values())}, the name or path of a recipe, or a run folder",
            ) from error
    from fmcli.checkpoints.layout import RECIPE_FILE
    from fmcli.data import guess_source
    from fmcli.members.pool import open_pool

    recipe = path / RECIPE_FILE
    if recipe.is_file():  # a run, possibly without a trained member
        return load_recipe(str(recipe)).data
    try:
        return open_pool([path], device="cpu").require_networks()[0].training.data
    except FmcliError as error:
        if source := guess_source(path):
            raise RecipeError(
                f"{printable(word)} is a source of images, not a run", hint=f"give it as {printable(source)}"
            ) from error
        raise


def _is_ensemble(path: Path) -> bool:
    from fmcli.ensemble.file import is_ensemble_file  # slow to import

    return path.is_file() and is_ensemble_file(path)
