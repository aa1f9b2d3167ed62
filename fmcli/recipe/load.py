"""From TOML to a `Recipe` and back."""

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

MAX_RECIPE_BYTES = 1 << 20  # bytes; a recipe is a page of text


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that came with fmcli, by name."""
    package = Path(str(resources.files("fmcli")))
    # Inside the package once installed; beside it in a source checkout.
    folder = next((place for place in (package / "recipes", package.parent / "recipes") if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)} if folder else {}


def find_recipe(name: str) -> Path:
    """Return the file that `--recipe` means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: There is neither.
    """
    if name.endswith(".toml") or set(name) & {"/", os.sep} or Path(name).is_file():
        path = Path(name)
        if path.is_dir():
            path = path / "recipe.toml"
        if not path.exists():  # a pipe will do: <(sed … quick.toml)
            raise RecipeError(f"no recipe at {printable(name)}", hint="fmcli recipe list shows what is shipped")
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(
            f"no recipe named {printable(name)!r}; {did_you_mean(name, list(shipped))}",
            hint="fmcli recipe list; or give a path that ends in .toml",
        )
    return shipped[name]


def read_text(path: Path) -> str:
    """Return a recipe's text.

    Raises:
        RecipeError: It cannot be read, is not UTF-8, or is far too long for a recipe.
    """
    return reading.read_text(path, MAX_RECIPE_BYTES, RecipeError)


def describe(text: str) -> str:
    r"""Return a recipe's first comment line, which says what it is for (`#:schema` is for editors).

    Example:
        >>> describe("# Three kernel sizes, one vote.\n[data]")
        'Three kernel sizes, one vote.'
    """
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#:")), "")
    return first.lstrip("# ") if first.startswith("#") else ""


@dataclass(frozen=True, slots=True)
class RecipeText:
    """A recipe as it was read: a table that is neither checked nor resolved.

    Args:
        name: Of its file.
        description: Its first comment line.
        table: As parsed from TOML, overrides laid over it.
    """

    name: str
    description: str
    table: Table


def read_recipe(name: str, overrides: Sequence[str] = ()) -> RecipeText:
    """Read and override a recipe.

    Args:
        name: A path, or the name of a shipped recipe.
        overrides: `key=value` strings, see `apply_overrides`.

    Raises:
        RecipeError: It cannot be read, is no TOML, or an override does not fit.
    """
    path = find_recipe(name)
    text = read_text(path)
    try:
        table = reading.parse_toml(text)
    except ValueError as error:
        raise RecipeError(
            f"{printable(path)} is not valid TOML: {printable(error)}", hint='strings take quotes: name = "adam"'
        ) from error
    in_utf8 = path.stem if is_utf8(path.stem) else path.stem.encode("ascii", "replace").decode().replace("?", "_")
    return RecipeText(in_utf8, describe(text), apply_overrides(table, overrides))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        name: A path, or the name of a shipped recipe.
        overrides: `key=value` strings, see `apply_overrides`.

    Returns:
        The recipe with every default filled in.

    Raises:
        RecipeError: With every problem found.
    """
    read = read_recipe(name, overrides)
    return resolve_recipe(read.table, name=read.name, description=read.description)


def dump_recipe(recipe: Recipe) -> str:
    """Return a resolved recipe as TOML that `load_recipe` reads back to the same value."""
    return dump_table(recipe.model_dump(exclude_none=True, exclude={"description"}), recipe.description)


def dump_table(table: Table, description: str) -> str:
    """Return a recipe's table as TOML below a comment line."""
    return f"# {description}\n" + tomli_w.dumps(table)


def recipe_digest(*specs: BaseModel) -> str:
    """Return a SHA-256 over specs, whatever the order and spacing of the TOML they came from."""
    content = json.dumps([spec.model_dump(mode="json") for spec in specs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
