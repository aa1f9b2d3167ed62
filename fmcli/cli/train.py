"""`fmcli train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, get_args

import typer

from fmcli.choices import ExecutorName
from fmcli.cli import options
from fmcli.cli.command import MACHINE, OUTPUT, TRAINING
from fmcli.cli.plotters import curve_plotters, data_plotters, write_plots
from fmcli.cli.training_session import training_session

if TYPE_CHECKING:
    import torch

    from fmcli.recipe import Recipe
    from fmcli.report.document import Document

MemberNames = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="NAME", help="Train only this member. Can be repeated.", rich_help_panel=TRAINING),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder of the run. Default: checkpoints/RECIPE.", rich_help_panel=OUTPUT
    ),
]
SaveEvery = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="MINUTES",
        help="Minutes between saves within one epoch. 0 saves after every step.",
        rich_help_panel=TRAINING,
    ),
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
        rich_help_panel=MACHINE,
    ),
]
Executor = Annotated[
    ExecutorName | None,
    typer.Option(
        metavar="NAME",
        help=f"How members are trained: {', '.join(get_args(ExecutorName))}. Default: sequential; with several jobs, "
        "cuda_streams on a GPU, otherwise processes.",
        rich_help_panel=MACHINE,
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Print what would be trained, with estimated times. Train and write nothing.",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Random seed. Same as --set trainer.seed=N.", rich_help_panel=TRAINING),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an existing run.", rich_help_panel=TRAINING)]


def train(
    recipe: options.RecipeName,
    set_: options.Overrides = None,
    plan: Plan = False,
    resume: Resume = False,
    overwrite: options.Retrain = False,
    member: MemberNames = None,
    seed: Seed = None,
    save_every: SaveEvery = 5.0,
    output: RunFolder = None,
    format_: options.FormatOption = "table",
    plots: options.Plots = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    jobs: Jobs = None,
    executor: Executor = None,
    data_root: options.DataRoot = None,
) -> None:
    r"""Train the members of a recipe and write them to a run folder.

    Press Ctrl-C to stop; --resume continues from the last saved step. If you start the same command in a second shell,
    it trains members that the first one has not started yet.

    Examples:
        fmcli train --recipe quick
        fmcli train --recipe quick --resume
        fmcli train --recipe quick --set trainer.epochs=4 --output checkpoints/short

        # your own images: a folder with one subfolder per class
        fmcli train --recipe quick --set data.source=folder:pets --set 'data.size=[32,32]' \
          --set 'data.validation={ fraction = 0.2, stratify = true }' --output checkpoints/pets
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
    chosen: _Chosen = {
        "members": member or (),
        "resume": resume,
        "overwrite": overwrite,
        "jobs": jobs,
        "threads": threads,
        "executor": executor,
    }
    advise = not (plan or resume) and (jobs or 1) == 1
    with training_session(terminal, device, threads, resume_flag="--resume", advise=advise) as (on_device, reporter):
        if plan:
            emit(_plan(values, folder, on_device, data_root, chosen), format_, terminal)
            return
        histories = train_run(
            values,
            folder,
            device=on_device,
            data_root=data_root,
            save_after=60 * save_every,
            reporter=reporter,
            **chosen,
        )
    names = [spec.name for spec in values.members if not member or spec.name in member]
    elsewhere = [name for name in names if name not in histories]
    emit(history_document(str(folder), histories, elsewhere), format_, terminal)
    if plots is not None:
        trainers = {spec.name: spec.trainer for spec in values.members}
        curves = curve_plotters(histories, trainers, of=folder.resolve().name) if histories else {}
        images = data_plotters(values.data, load_splits(values.data, data_root))
        write_plots(plots, {**images, **curves}, terminal)


class _Chosen(TypedDict):
    members: Sequence[str]
    resume: bool
    overwrite: bool
    jobs: int | None
    threads: int | None
    executor: ExecutorName | None


def _plan(recipe: Recipe, folder: Path, device: torch.device, data_root: Path | None, chosen: _Chosen) -> Document:
    from fmcli.data import load_splits
    from fmcli.report.plan import plan_document
    from fmcli.training.plan import plan_run
    from fmcli.training.run_folder import locked_if_used

    splits = load_splits(recipe.data, data_root)
    with locked_if_used(folder):
        plan = plan_run(recipe, folder, splits, device, **chosen)
    return plan_document(
        str(folder), plan.members, executor=plan.executor, jobs=plan.concurrency.jobs, seconds=plan.seconds
    )
