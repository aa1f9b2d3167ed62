"""`fmcli reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Overrides,
    Quiet,
    Threads,
    Verbose,
    complete_recipe,
)
from fmcli.cli.remedies import describe_remedy
from fmcli.cli.stop_signals import interruptible
from fmcli.cli.thread_count import use_threads


def reproduce(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes with a [reference] table; by default all that are shipped.",
            autocompletion=complete_recipe,
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many trainings of each, with seeds 0, 1, …")] = 1,
    set_: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the runs go, as NAME/seed-N.")] = Path(
        "checkpoints/reproduce"
    ),
    skip_done: Annotated[
        bool,
        typer.Option(
            "--skip-done", help="Take finished runs as they are, go on with begun ones; processes share the work."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train afresh what is there.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train published systems from their recipes, and set our figures beside theirs.

    Example: fmcli reproduce roy-1 becker-cnn --seeds 3
    """
    from fmcli.experiments.reproduce import published_systems
    from fmcli.experiments.reproduce import reproduce as run_systems
    from fmcli.hardware.device import resolve_device
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.progress import TrainingProgress
    from fmcli.report.published import published_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    advice = use_threads(threads, where, advise=not skip_done)
    with interruptible("--skip-done") as heeding, TrainingProgress(terminal, advice, describe_remedy) as progress:
        results = run_systems(
            systems or published_systems(),
            output,
            seeds=seeds,
            device=where,
            overrides=set_ or (),
            skip_done=skip_done,
            overwrite=overwrite,
            threads=threads,
            data_root=data_root,
            reporter=heeding(progress),
        )
    emit(published_document(results), format_, terminal)
