"""`fmcli ensemble pack`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.errors import DataError, UsageError, printable


def pack(
    members: options.Networks,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            callback=options.check_output,
            metavar="FILE",
            help="File to write. Its name must end in .safetensors.",
        ),
    ],
    vote: options.Vote = None,
    tie: options.Tie = None,
    weights: options.Weights = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write an ensemble to one file: its members, rule, temperature, classes and everything that predict needs.

    Example: fmcli ensemble pack checkpoints/quick --output quick.safetensors
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"the name of a pack must end in .safetensors; got {printable(output)}")
    options.refuse_to_replace(output, overwrite)

    from fmcli.members.compose import ComposedEnsemble, check_not_packed, fit_ensemble, pack_ensemble
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    check_not_packed(pool)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights)
    try:
        composed = fit_ensemble(pool, rule, data_root=data_root)
    except DataError as error:
        if rule.needs_fit:
            raise
        terminal.note(f"packed without a temperature, which needs validation images: {printable(error.message)}")
        composed = ComposedEnsemble(pool, rule, None)
    pack_ensemble(output, composed)
    terminal.write(f"{output}\n")
