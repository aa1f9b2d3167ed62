"""What a word on the command line stands for where images are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.errors import RecipeError, printable

if TYPE_CHECKING:
    from fmcli.recipe import DataSpec


def data_spec(place: str) -> DataSpec:
    """Return the `[data]` table that a source, a recipe, a run or a checkpoint stands for.

    Raises:
        RecipeError: It is none of these, or a recipe that cannot be read.
        CheckpointError: It is there, but holds no checkpoint.
    """
    from pydantic import ValidationError

    from fmcli.recipe import DataSpec, load_recipe, shipped_recipes

    if place in shipped_recipes() or place.endswith(".toml"):
        return load_recipe(place).data
    try:
        return DataSpec(source=place)
    except ValidationError as error:
        if not Path(place).exists():
            raise RecipeError(
                f"no such source, recipe or run: {printable(place)}",
                hint="fashion-mnist, idx:DIR, a recipe's name or path, or a run's folder",
            ) from error
    from fmcli.checkpoint import RECIPE_FILE, find_checkpoints, read_header

    recipe = Path(place) / RECIPE_FILE
    if recipe.is_file():  # a run, even one that has no trained member yet
        return load_recipe(str(recipe)).data
    return read_header(find_checkpoints([Path(place)])[0]).data
