"""`fmcli reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.training_session import training_session

Systems = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE",
        help="Recipes with a [reference] table. Default: all shipped recipes that have one.",
        autocompletion=options.complete_recipe,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, metavar="N", help="Number of runs per system, with seeds 0, 1, …")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the runs NAME/seed-N.")]
SkipDone = Annotated[
    bool,
    typer.Option(
        "--skip-done", help="Keep finished runs and continue partial ones. Several processes can then share the work."
    ),
]


def reproduce(
    systems: Systems = None,
    seeds: Seeds = 1,
    set_: options.Overrides = None,
    output: Output = Path("checkpoints/reproduce"),
    skip_done: SkipDone = False,
    overwrite: options.Retrain = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train published systems from their recipes, and compare their accuracy with the published accuracy.

    Example: fmcli reproduce roy-1 becker-cnn --seeds 3
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
