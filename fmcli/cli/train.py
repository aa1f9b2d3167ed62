"""`fmcli train`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.plotters import curve_plotters, data_plotters, write_plots
from fmcli.cli.remedies import describe_remedy
from fmcli.cli.stop_signals import interruptible
from fmcli.cli.thread_count import set_threads

CHECKPOINTS = Path("checkpoints")


def train(
    recipe: options.RecipeName,
    set_: options.Overrides = None,
    member: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Train only this member. Can be repeated.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. Default: checkpoints/RECIPE."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an existing run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing run and train from scratch.")
    ] = False,
    save_every: Annotated[
        float,
        typer.Option(
            min=0, metavar="MINUTES", help="Minutes between saves within one epoch. 0 saves after every step."
        ),
    ] = 5.0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Number of members to train in parallel. The cores are divided among them unless --threads is given. "
            "Default: estimated to be fastest.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed. Short for --set trainer.seed=N.")] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
    plots: options.Plots = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train the members of a recipe and write them to a run folder.

    Press Ctrl-C to stop; --resume continues from the last saved step.

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
    resolved_device = resolve_device(device)
    advice = set_threads(threads, resolved_device, advise=not resume and (jobs or 1) == 1)
    with interruptible("--resume") as stoppable, TrainingProgress(terminal, advice, describe_remedy) as progress:
        result = train_run(
            values,
            folder,
            device=resolved_device,
            members=member or (),
            resume=resume,
            overwrite=overwrite,
            data_root=data_root,
            save_after=60 * save_every,
            jobs=jobs,
            threads=threads,
            reporter=stoppable(progress),
        )
    emit(history_document(str(result.folder), result.histories), format_, terminal)
    if plots is not None:
        trainers = {spec.name: spec.trainer for spec in values.members}
        curves = curve_plotters(result.histories, trainers, of=folder.resolve().name)
        write_plots(plots, {**data_plotters(values.data, data_root), **curves}, terminal)
