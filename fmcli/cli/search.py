"""`fmcli search`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Overrides,
    Quiet,
    RecipeName,
    Threads,
    Verbose,
)
from fmcli.cli.remedies import describe_remedy
from fmcli.cli.stop_signals import interruptible
from fmcli.cli.thread_count import use_threads
from fmcli.errors import UsageError
from fmcli.storage.atomic import check_writable


def search(
    recipe: RecipeName,
    set_: Overrides = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many trials in all; by default the recipe's number.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The search's folder; by default checkpoints/search/RECIPE.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that is there, or join it from another process.")
    ] = False,
    write_recipe: Annotated[
        Path | None, typer.Option(help="Write the recipe with the best values here.", metavar="FILE")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search for better values of a recipe, by its [search] table, on the validation images alone.

    Example: fmcli search --recipe ams-search --write-recipe tuned.toml
    """
    from fmcli.experiments.search import open_search, run_search, write_winner
    from fmcli.hardware.device import resolve_device
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.progress import TrainingProgress
    from fmcli.report.search import search_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    advice = use_threads(threads, where, advise=True)
    chosen = open_search(recipe, output, overrides=set_ or (), trials=trials)
    if write_recipe is not None:
        _check_winners_place(recipe, write_recipe)
    with interruptible("--resume") as heeding, TrainingProgress(terminal, advice, describe_remedy) as progress:
        result = run_search(
            chosen,
            device=where,
            resume=resume,
            threads=threads,
            data_root=data_root,
            reporter=heeding(progress),
        )
    emit(search_document(result), format_, terminal)
    if write_recipe is not None:
        write_winner(chosen, result, write_recipe)
        terminal.note(f"wrote {write_recipe}; next: fmcli train --recipe {shlex.quote(str(write_recipe))}")


def _check_winners_place(recipe: str, path: Path) -> None:
    """Refuse, before any training, a place that cannot be written, or the recipe that is searched."""
    from fmcli.recipe import find_recipe

    check_writable(path)
    if path.exists() and path.samefile(find_recipe(recipe)):
        raise UsageError(f"{path} is the recipe that is searched", hint="give --write-recipe another name")
