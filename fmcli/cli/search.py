"""`fmcli search`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import OUTPUT, TRAINING
from fmcli.cli.training_session import training_session
from fmcli.errors import UsageError, printable
from fmcli.storage.atomic import check_writable

Trials = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Total number of trials. Default: from the recipe.", rich_help_panel=TRAINING
    ),
]
SearchFolder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder of the search. Default: checkpoints/search/RECIPE.",
        rich_help_panel=OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue an existing search. Other processes may run it at the same time.",
        rich_help_panel=TRAINING,
    ),
]
WriteRecipe = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the recipe with the best values to this file.", rich_help_panel=OUTPUT),
]


def search(
    recipe: options.RecipeName,
    set_: options.Overrides = None,
    trials: Trials = None,
    resume: Resume = False,
    output: SearchFolder = None,
    write_recipe: WriteRecipe = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
) -> None:
    """Search for hyperparameters with a better score on the validation images.

    The [search] table of the recipe lists the keys to vary.

    Examples:
        fmcli search --recipe ams-search --write-recipe tuned.toml
        fmcli search --recipe ams-search --resume --trials 40
    """
    from fmcli.experiments.search import open_search, run_search, write_winner
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.search import search_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    chosen = open_search(recipe, output, overrides=set_ or (), trials=trials)
    if write_recipe is not None:
        _check_winner_path(recipe, write_recipe)
    with training_session(terminal, device, threads, resume_flag="--resume", advise=True) as (on_device, reporter):
        result = run_search(
            chosen, device=on_device, resume=resume, threads=threads, data_root=data_root, reporter=reporter
        )
    emit(search_document(result), format_, terminal)
    if write_recipe is not None:
        write_winner(chosen, result, write_recipe)
        terminal.note(
            f"wrote {printable(write_recipe)}; next: fmcli train --recipe {printable(shlex.quote(str(write_recipe)))}"
        )


def _check_winner_path(recipe: str, path: Path) -> None:
    """Check, before training, that the file can be written and is not the recipe of the search."""
    from fmcli.recipe import find_recipe

    check_writable(path)
    if path.exists() and path.samefile(find_recipe(recipe)):
        raise UsageError(
            f"--write-recipe would replace {printable(path)}, the recipe of this search", hint="choose another file"
        )
