"""What a word on the command line stands for where images are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.errors import CheckpointError, RecipeError, printable

if TYPE_CHECKING:
    from fmcli.recipe import DataSpec


def data_spec(place: str) -> DataSpec:
    """Return the `[data]` table that a source, a recipe, a run, a checkpoint or an ensemble stands for.

    Raises:
        RecipeError: It is none of these, or a recipe that cannot be read, or a folder of pictures.
        CheckpointError: It is there, but holds no checkpoint.
        UsageError: It holds predictions alone.
    """
    from pydantic import ValidationError

    from fmcli.recipe import DataSpec, load_recipe, shipped_recipes

    if place in shipped_recipes() or (place.endswith(".toml") and not _is_ensemble(Path(place))):
        return load_recipe(place).data
    try:
        return DataSpec(source=place)
    except ValidationError as error:
        if not Path(place).exists():
            raise RecipeError(
                f"no such source, recipe or run: {printable(place)}",
                hint="fashion-mnist, folder:DIR, idx:DIR, npz:FILE, a recipe's name or path, or a run's folder",
            ) from error
    from fmcli.checkpoints.layout import RECIPE_FILE
    from fmcli.members import open_pool

    recipe = Path(place) / RECIPE_FILE
    if recipe.is_file():  # a run, even one that has no trained member yet
        return load_recipe(str(recipe)).data
    if place.endswith(".npz") and Path(place).is_file():
        raise RecipeError(
            f"{printable(place)} is an archive of arrays", hint=f"as a source it is npz:{printable(place)}"
        )
    try:
        return open_pool([Path(place)], device="cpu").require_networks()[0].header.data
    except CheckpointError as error:
        if Path(place).is_dir() and _has_classes(Path(place)):
            raise RecipeError(
                f"{printable(place)} holds pictures, and no run", hint=f"as a source it is folder:{printable(place)}"
            ) from error
        raise


def _has_classes(folder: Path) -> bool:
    """Tell whether pictures lie in folders of a folder."""
    from fmcli.data import find_image_files

    return any(path.parent != folder for path in find_image_files(folder))


def _is_ensemble(path: Path) -> bool:
    from fmcli.ensemble.file import is_ensemble_file  # slow to import

    return path.is_file() and is_ensemble_file(path)
