"""`fmcli train`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.plotters import curve_plotters, data_plotters, write_plots
from fmcli.cli.training_session import training_session

MemberNames = Annotated[
    list[str] | None, typer.Option("--member", metavar="NAME", help="Train only this member. Can be repeated.")
]
RunFolder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run. Default: checkpoints/RECIPE.")
]
SaveEvery = Annotated[
    float,
    typer.Option(min=0, metavar="MINUTES", help="Minutes between saves within one epoch. 0 saves after every step."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        metavar="N",
        help="Number of members to train in parallel. The cores are divided among them unless --threads is given. "
        "Default: the number that is estimated to be fastest.",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Random seed. Short for --set trainer.seed=N.")]


def train(
    recipe: options.RecipeName,
    set_: options.Overrides = None,
    member: MemberNames = None,
    output: RunFolder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an existing run.")] = False,
    overwrite: options.Retrain = False,
    save_every: SaveEvery = 5.0,
    jobs: Jobs = None,
    seed: Seed = None,
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

    Example: fmcli train --recipe quick --set trainer.epochs=4 --output short
    """
    from fmcli.recipe import load_recipe

    values = load_recipe(recipe, [*(set_ or []), *([f"trainer.seed={seed}"] if seed is not None else [])])
    folder = output or Path("checkpoints") / values.name

    from fmcli.data import load_splits
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.history import history_document
    from fmcli.training.run import train_run

    terminal = Terminal(quiet=quiet, verbose=verbose)
    advise = not resume and (jobs or 1) == 1
    with training_session(terminal, device, threads, resume_flag="--resume", advise=advise) as (on_device, reporter):
        histories = train_run(
            values,
            folder,
            device=on_device,
            members=member or (),
            resume=resume,
            overwrite=overwrite,
            data_root=data_root,
            save_after=60 * save_every,
            jobs=jobs,
            threads=threads,
            reporter=reporter,
        )
    emit(history_document(str(folder), histories), format_, terminal)
    if plots is not None:
        trainers = {spec.name: spec.trainer for spec in values.members}
        curves = curve_plotters(histories, trainers, of=folder.resolve().name)
        images = data_plotters(values.data, load_splits(values.data, data_root))
        write_plots(plots, {**images, **curves}, terminal)
