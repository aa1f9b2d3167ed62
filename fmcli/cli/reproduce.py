"""`fmcli reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import OUTPUT, TRAINING
from fmcli.cli.training_session import training_session

Systems = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE",
        help="Recipes with a [reference] table. Default: all shipped recipes that have one.",
        autocompletion=options.complete_recipe,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Number of runs per system, with seeds 0, 1, …", rich_help_panel=TRAINING),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for the runs RECIPE/seed-N.", rich_help_panel=OUTPUT),
]
SkipDone = Annotated[
    bool,
    typer.Option(
        "--skip-done",
        help="Keep finished runs and continue partial ones. Several processes can then share the work.",
        rich_help_panel=TRAINING,
    ),
]


def reproduce(
    systems: Systems = None,
    set_: options.Overrides = None,
    seeds: Seeds = 1,
    skip_done: SkipDone = False,
    overwrite: options.Retrain = False,
    output: Output = Path("checkpoints/reproduce"),
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
) -> None:
    """Train published systems from their recipes, and compare their accuracy with the published accuracy.

    Examples:
        fmcli reproduce roy-1
        fmcli reproduce roy-1 becker-cnn --seeds 3
    """
    from fmcli.experiments.reproduce import published_systems
    from fmcli.experiments.reproduce import reproduce as run_systems
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.published import published_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    session = training_session(terminal, device, threads, resume_flag="--skip-done", advise=not skip_done)
    with session as (on_device, reporter):
        results = run_systems(
            systems or published_systems(),
            output,
            seeds=seeds,
            device=on_device,
            overrides=set_ or (),
            skip_done=skip_done,
            overwrite=overwrite,
            threads=threads,
            data_root=data_root,
            reporter=reporter,
        )
    emit(published_document(results), format_, terminal)
