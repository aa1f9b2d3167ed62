"""`fmcli recipe …`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.options import (
    DataRoot,
    FormatOption,
    Overrides,
    RecipeArgument,
    command_group,
)
from fmcli.errors import UsageError, did_you_mean, printable
from fmcli.storage.atomic import write_atomic

app = command_group("Find, read, copy and check recipes.")


@app.command("list")
def list_recipes(format_: FormatOption = "table") -> None:
    """List the recipes that come with fmcli.

    Example: fmcli recipe list
    """
    from fmcli.recipe import read_text, recipe_description, shipped_recipes
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.recipes import recipes_document

    rows = [(name, recipe_description(read_text(path))) for name, path in shipped_recipes().items()]
    emit(recipes_document(rows), format_, Terminal())


@app.command("show", short_help="Print a recipe, or what it stands for.")
def show_recipe(
    recipe: RecipeArgument,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="With every default filled in, member by member.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Each network, layer by layer, with shapes and parameters.")
    ] = False,
    set_: Overrides = None,
    data_root: DataRoot = None,
    format_: FormatOption = "table",
) -> None:
    """Print a recipe, or what it stands for; --format is for --summary, a recipe itself is TOML.

    Example: fmcli recipe show quick --summary
    """
    from fmcli.recipe import dump_recipe, find_recipe, known_facts, load_recipe, read_text
    from fmcli.report.console import Terminal

    terminal = Terminal()
    if not (summary or resolved or set_):
        terminal.write(read_text(find_recipe(recipe)))
        return
    values = load_recipe(recipe, set_ or ())
    if not summary:
        terminal.write(dump_recipe(values))
        return
    from fmcli.recipe import SourceFacts
    from fmcli.recipe.tracing import trace_recipe
    from fmcli.report.document import emit
    from fmcli.report.recipes import summary_document

    facts = known_facts(values.data)
    if facts is None:  # only the images themselves say how large they are
        from fmcli.data import load_source

        images = load_source(values.data, data_root=data_root).train
        facts = SourceFacts(images.input_shape, images.class_names)
    emit(summary_document(values, trace_recipe(values, facts)), format_, terminal)


@app.command("copy")
def copy_recipe(
    recipe: RecipeArgument,
    target: Annotated[Path, typer.Argument(help="Where to; a folder or a new file.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to change it.

    Example: fmcli recipe copy quick my.toml
    """
    from fmcli.recipe import find_recipe, read_text
    from fmcli.report.console import Terminal

    source = find_recipe(recipe)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not overwrite:
        raise UsageError(f"{printable(target)} exists", hint="--overwrite replaces it")
    write_atomic(target, read_text(source).encode())
    Terminal().write(f"{target}\n")


@app.command("validate")
def validate_recipe(recipe: RecipeArgument, set_: Overrides = None) -> None:
    """Check a recipe and report every problem at once.

    No images are read, so the networks' input and the size of the splits are checked for fashion-mnist only.

    Example: fmcli recipe validate my.toml
    """
    from fmcli.recipe import known_facts, load_recipe
    from fmcli.report.console import Terminal

    values = load_recipe(recipe, set_ or ())
    if any(member.augment.albumentations for member in values.members):
        from fmcli.data.recipe_checks import check_augmentation

        facts = known_facts(values.data)
        check_augmentation(values, facts.input_shape if facts else None)
    count = f"{len(values.members)} member{'s' if len(values.members) > 1 else ''}"
    Terminal().write(f"{printable(recipe)}: valid, {count}\n")


@app.command("keys", short_help="List the keys of a recipe, with defaults.")
def list_keys(
    table: Annotated[
        str | None, typer.Argument(help="Only this table and those in it, such as trainer.", show_default=False)
    ] = None,
    format_: FormatOption = "table",
) -> None:
    """List every key that a recipe may have: what it takes, its default and its meaning.

    Example: fmcli recipe keys optimizer
    """
    from fmcli.recipe import recipe_keys
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.recipes import keys_document

    tables = recipe_keys()
    wanted = (table or "").strip("[]")
    found = [one for one in tables if wanted in ("", one.path) or one.path.startswith((f"{wanted}.", f"{wanted}["))]
    if not found:
        names = sorted({one.path.partition(".")[0].removesuffix("[]") for one in tables if one.path})
        raise UsageError(f"no table of a recipe is called {printable(wanted)!r}; {did_you_mean(wanted, names)}")
    emit(keys_document(found), format_, Terminal())


@app.command("schema")
def print_schema() -> None:
    """Print a JSON Schema of recipes, for completion in an editor.

    Example: fmcli recipe schema > recipe.schema.json, then begin recipes with #:schema ./recipe.schema.json
    """
    from fmcli.recipe import recipe_schema
    from fmcli.report.console import Terminal

    Terminal().write(json.dumps(recipe_schema(), indent=2) + "\n")
