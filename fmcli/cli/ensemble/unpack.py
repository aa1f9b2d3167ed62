"""`fmcli ensemble unpack`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.command import OUTPUT
from fmcli.cli.options import Quiet, Verbose
from fmcli.errors import printable


def unpack(
    packed: Annotated[Path, typer.Argument(metavar="PACK", help="File that fmcli ensemble pack wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", file_okay=False, metavar="DIR", help="Folder to create.", rich_help_panel=OUTPUT
        ),
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Extract the members of a pack into a new run folder, with an ensemble file for the voting rule.

    Example: fmcli ensemble unpack quick.safetensors --output checkpoints/copy
    """
    from fmcli.checkpoints.pack import ENSEMBLE_FILE
    from fmcli.checkpoints.pack import unpack as extract
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    for folder in extract(packed, output):
        terminal.detail(f"wrote {printable(folder)}")
    ensemble = output / ENSEMBLE_FILE
    terminal.note(f"the rule is in {printable(ensemble)}; next: fmcli ensemble evaluate {printable(ensemble)}")
    terminal.write(f"{ensemble}\n")
