"""`fmcli ensemble unpack`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.options import Quiet, Verbose
from fmcli.errors import printable


def unpack(
    packed: Annotated[Path, typer.Argument(help="A file of fmcli ensemble pack.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The folder to make.", show_default=False)
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take a pack apart into a run folder again, each file as it was, with an ensemble file for its rule.

    Example: fmcli ensemble unpack quick.safetensors --output checkpoints/quick-again
    """
    from fmcli.checkpoints.pack import ENSEMBLE_FILE
    from fmcli.checkpoints.pack import unpack as take_apart
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    for folder in take_apart(packed, output):
        terminal.detail(f"wrote {printable(folder)}")
    ensemble = output / ENSEMBLE_FILE
    terminal.note(f"The rule is in {printable(ensemble)}. Next: fmcli ensemble evaluate {printable(ensemble)}")
    terminal.write(f"{ensemble}\n")
