"""Find, read and write recipe files."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import tomli_w
from pydantic import BaseModel

from fmcli.errors import RecipeError, did_you_mean, is_utf8, printable
from fmcli.recipe.overrides import Table, apply_overrides
from fmcli.recipe.recipe import Recipe
from fmcli.recipe.resolve import resolve_recipe
from fmcli.storage import reading

MAX_RECIPE_BYTES = 1 << 20  # a typical recipe has 2 KiB


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes that are part of fmcli, by name."""
    package = Path(str(resources.files("fmcli")))
    # An installed package contains the folder; in a source checkout it is next to the package.
    folder = next((path for path in (package / "recipes", package.parent / "recipes") if path.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)} if folder else {}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: Path of a file, path of a run folder with a `recipe.toml`, or name of a shipped recipe.

    Raises:
        RecipeError: There is no such file and no such shipped recipe.
    """
    if name.endswith(".toml") or set(name) & {"/", os.sep} or Path(name).is_file():
        path = Path(name)
        if path.is_dir():
            path = path / "recipe.toml"
        if not path.exists():  # instead of is_file(), because the path may be a pipe: <(sed … quick.toml)
            raise RecipeError(f"no recipe at {printable(name)}", hint="to list the shipped recipes: fmcli recipe list")
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(
            f"no recipe named {printable(name)!r}; {did_you_mean(name, list(shipped))}",
            hint="to list the shipped recipes: fmcli recipe list; the path of your own recipe must end in .toml",
        )
    return shipped[name]


def read_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        RecipeError: The file cannot be read, is not UTF-8, or is larger than 1 MiB.
    """
    return reading.read_text(path, MAX_RECIPE_BYTES, RecipeError)


def recipe_description(text: str) -> str:
    r"""Return the description of a recipe: the first comment line that is not a `#:schema` line for editors.

    Example:
        >>> recipe_description("# Three kernel sizes, one vote.\n[data]")
        'Three kernel sizes, one vote.'
    """
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#:")), "")
    return first.lstrip("# ") if first.startswith("#") else ""


@dataclass(frozen=True, slots=True)
class RecipeText:
    """A recipe file after parsing, before the values are checked.

    Args:
        name: Name of the file without the ending.
        description: The first comment line.
        table: The parsed table, with overrides applied.
    """

    name: str
    description: str
    table: Table


def read_recipe(name: str, overrides: Sequence[str] = ()) -> RecipeText:
    """Read a recipe and apply overrides.

    Args:
        name: Path or name of a recipe; see `find_recipe`.
        overrides: `key=value` strings; see `apply_overrides`.

    Raises:
        RecipeError: The file cannot be read or is not TOML, or an override is not valid.
    """
    path = find_recipe(name)
    text = read_text(path)
    try:
        table = reading.parse_toml(text)
    except ValueError as error:
        raise RecipeError(
            f"{printable(path)} is not valid TOML: {printable(error)}", hint='text needs quotes: name = "adam"'
        ) from error
    in_utf8 = path.stem if is_utf8(path.stem) else path.stem.encode("ascii", "replace").decode().replace("?", "_")
    return RecipeText(in_utf8, recipe_description(text), apply_overrides(table, overrides))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, fill in defaults and check all values.

    Args:
        name: Path or name of a recipe; see `find_recipe`.
        overrides: `key=value` strings; see `apply_overrides`.

    Raises:
        RecipeError: The recipe has problems. The error lists all of them.
    """
    read = read_recipe(name, overrides)
    return resolve_recipe(read.table, name=read.name, description=read.description)


def dump_recipe(recipe: Recipe) -> str:
    """Return a resolved recipe as TOML, from which `load_recipe` reads the same values."""
    return dump_table(recipe.model_dump(exclude_none=True, exclude={"description"}), recipe.description)


def dump_table(table: Table, description: str) -> str:
    """Return the table of a recipe as TOML, after a comment with the description."""
    return f"# {description}\n" + tomli_w.dumps(table)


def recipe_digest(*specs: BaseModel) -> str:
    """Return the SHA-256 of the values of specs, which does not depend on the format of the TOML file."""
    content = json.dumps([spec.model_dump(mode="json") for spec in specs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
