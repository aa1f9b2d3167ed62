"""`fmcli recipe`: list, show, copy, validate, keys and schema."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import OUTPUT
from fmcli.errors import UsageError, did_you_mean, printable
from fmcli.storage.atomic import write_atomic

app = options.command_group("List, show, copy and check recipes.")


@app.command("list", short_help="List the shipped recipes.")
def list_recipes(format_: options.FormatOption = "table") -> None:
    """List the shipped recipes.

    Example: fmcli recipe list
    """
    from fmcli.recipe import read_text, recipe_description, shipped_recipes
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.recipes import recipes_document

    descriptions = {name: recipe_description(read_text(path)) for name, path in shipped_recipes().items()}
    emit(recipes_document(descriptions), format_, Terminal())


@app.command("show", short_help="Print a recipe or its networks.")
def show_recipe(
    recipe: options.RecipeArgument,
    set_: options.Overrides = None,
    resolved: Annotated[
        bool,
        typer.Option("--resolved", help="Print every key of every member, including defaults.", rich_help_panel=OUTPUT),
    ] = False,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary", help="Print the layers, shapes and parameter counts of each network.", rich_help_panel=OUTPUT
        ),
    ] = False,
    format_: options.FormatOption = "table",
    data_root: options.DataRoot = None,
) -> None:
    """Print a recipe as TOML, or a summary of its networks. --format applies only to the summary.

    Examples:
        fmcli recipe show quick
        fmcli recipe show quick --summary
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
    from fmcli.networks.tracing import trace_recipe
    from fmcli.recipe import SourceFacts
    from fmcli.report.document import emit
    from fmcli.report.recipes import summary_document

    facts = known_facts(values.data)
    if facts is None:  # the size is only known from the images themselves
        from fmcli.data import load_source

        images = load_source(values.data, data_root=data_root).train
        facts = SourceFacts(images.input_shape, images.class_names)
    emit(summary_document(values, trace_recipe(values, facts)), format_, terminal)


@app.command("copy", short_help="Copy a recipe to edit it.")
def copy_recipe(
    recipe: options.RecipeArgument,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File or folder to copy it to.")],
    overwrite: options.Overwrite = False,
) -> None:
    """Copy a recipe to edit it.

    Example: fmcli recipe copy quick my.toml
    """
    from fmcli.recipe import find_recipe, read_text
    from fmcli.report.console import Terminal

    source = find_recipe(recipe)
    target = target / source.name if target.is_dir() else target
    options.refuse_to_replace(target, overwrite)
    write_atomic(target, read_text(source).encode())
    Terminal().write(f"{target}\n")


@app.command("validate", short_help="Check a recipe.")
def validate_recipe(recipe: options.RecipeArgument, set_: options.Overrides = None) -> None:
    """Check a recipe and report all problems together.

    No images are read. The input shape of the networks, the number of classes and the sizes of the splits are therefore
    only checked for built-in datasets, such as fashion-mnist.

    Example: fmcli recipe validate my.toml
    """
    from fmcli.networks.tracing import check_names, trace_recipe
    from fmcli.recipe import known_facts, load_recipe
    from fmcli.report.console import Terminal

    values = load_recipe(recipe, set_ or ())
    facts = known_facts(values.data)
    if facts is None:
        check_names(values)
    else:
        trace_recipe(values, facts)
    if any(member.augment.albumentations for member in values.members):
        from fmcli.training.recipe_checks import check_augmentation

        check_augmentation(values, facts.input_shape if facts else None)
    count = f"{len(values.members)} member{'s' if len(values.members) > 1 else ''}"
    Terminal().write(f"{printable(recipe)}: valid, {count}\n")


@app.command("keys", short_help="List all keys with their defaults.")
def list_keys(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="Show only this table and its subtables, for example trainer.")
    ] = None,
    format_: options.FormatOption = "table",
) -> None:
    """List the keys of a recipe with their type, default and meaning.

    Examples:
        fmcli recipe keys
        fmcli recipe keys optimizer
    """
    from fmcli.recipe import recipe_keys
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.recipes import keys_document

    tables = recipe_keys()
    wanted = (table or "").strip("[]")
    found = [spec for spec in tables if wanted in ("", spec.path) or spec.path.startswith((f"{wanted}.", f"{wanted}["))]
    if not found:
        names = sorted({spec.path.partition(".")[0].removesuffix("[]") for spec in tables if spec.path})
        raise UsageError(f"unknown recipe table {printable(wanted)!r}; {did_you_mean(wanted, names)}")
    emit(keys_document(found), format_, Terminal())


@app.command("schema", short_help="Print a JSON Schema for editors.")
def print_schema() -> None:
    """Print a JSON Schema of recipes. Editors use it for completion and validation.

    Put #:schema ./recipe.schema.json in the first line of a recipe, so that the editor finds the file.

    Example: fmcli recipe schema > recipe.schema.json
    """
    from fmcli.recipe import recipe_schema
    from fmcli.report.console import Terminal

    Terminal().write(json.dumps(recipe_schema(), indent=2) + "\n")
