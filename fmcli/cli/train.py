"""`fmcli train`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.figures import curve_drawers, data_drawers, write_plots
from fmcli.cli.interrupts import interruptible
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

CHECKPOINTS = Path("checkpoints")


def train(
    recipe: RecipeName,
    set_: Overrides = None,
    member: Annotated[list[str] | None, typer.Option(help="Train only this member; may be repeated.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder; by default checkpoints/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that is there.")] = False,
    seed: Annotated[int | None, typer.Option(help="Short for --set trainer.seed=N.")] = None,
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

    import torch

    from fmcli.device import resolve_device
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.evaluations import history_document
    from fmcli.report.progress import TrainingProgress
    from fmcli.run import train_run

    terminal = Terminal(quiet=quiet, verbose=verbose)
    if threads is not None:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    with (
        interruptible(_command_to_resume(recipe, overrides, folder, member or [], device, threads, data_root, plots)),
        TrainingProgress(terminal) as progress,
    ):
        result = train_run(
            values,
            folder,
            device=where,
            members=member or (),
            resume=resume,
            overwrite=overwrite,
            data_root=data_root,
            reporter=progress,
        )
    if plots is not None:
        trainers = {one.name: one.trainer for one in values.members}
        curves = curve_drawers(result.histories, trainers, of=folder.resolve().name)
        write_plots(plots, {**data_drawers(values.data, data_root), **curves}, terminal)
    emit(history_document(str(result.folder), result.histories), format_, terminal)


def _command_to_resume(
    recipe: str,
    overrides: list[str],
    folder: Path,
    members: list[str],
    device: str,
    threads: int | None,
    data_root: Path | None,
    plots: Path | None,
) -> str:
    """Return the same command again, with --resume: it holds however far the run came."""
    words = ["fmcli", "train", "--recipe", recipe, *(word for override in overrides for word in ("--set", override))]
    words += ["--output", str(folder), "--resume", *(word for name in members for word in ("--member", name))]
    words += ["--device", device] if device != "auto" else []
    words += ["--threads", str(threads)] if threads is not None else []
    words += ["--data-root", str(data_root)] if data_root is not None else []
    words += ["--plots", str(plots)] if plots is not None else []
    return shlex.join(words)
