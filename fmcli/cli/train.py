"""`fmcli train`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Overrides,
    Plots,
    Quiet,
    RecipeName,
    Threads,
    Verbose,
)
from fmcli.cli.plotters import curve_drawers, data_drawers, write_plots
from fmcli.cli.remedies import describe_remedy
from fmcli.cli.stop_signals import interruptible
from fmcli.cli.thread_count import use_threads

CHECKPOINTS = Path("checkpoints")


def train(
    recipe: RecipeName,
    set_: Overrides = None,
    member: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Train only this member; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The run's folder; by default checkpoints/RECIPE."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that is there and train afresh.")
    ] = False,
    save_every: Annotated[
        float,
        typer.Option(
            min=0, metavar="MINUTES", help="Minutes between saves within a long epoch; 0 saves after every step."
        ),
    ] = 5.0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Members to train at once, each on its share of the cores (or --threads of its own); by default, what "
            "should be fastest.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Short for --set trainer.seed=N.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    plots: Plots = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train every member of a recipe into a run folder.

    Example: fmcli train --recipe quick --set trainer.epochs=4 --output checkpoints/short
    """
    from fmcli.recipe import load_recipe

    overrides = [*(set_ or []), *([f"trainer.seed={seed}"] if seed is not None else [])]
    values = load_recipe(recipe, overrides)
    folder = output or CHECKPOINTS / values.name

    from fmcli.hardware.device import resolve_device
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.history import history_document
    from fmcli.report.progress import TrainingProgress
    from fmcli.training.run import train_run

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    advice = use_threads(threads, where, advise=not resume and (jobs or 1) == 1)
    with interruptible("--resume") as heeding, TrainingProgress(terminal, advice, describe_remedy) as progress:
        result = train_run(
            values,
            folder,
            device=where,
            members=member or (),
            resume=resume,
            overwrite=overwrite,
            data_root=data_root,
            save_after=60 * save_every,
            jobs=jobs,
            threads=threads,
            reporter=heeding(progress),
        )
    emit(history_document(str(result.folder), result.histories), format_, terminal)
    if plots is not None:
        trainers = {one.name: one.trainer for one in values.members}
        curves = curve_drawers(result.histories, trainers, of=folder.resolve().name)
        write_plots(plots, {**data_drawers(values.data, data_root), **curves}, terminal)
