"""`fmcli ensemble pack`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import OUTPUT
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.errors import DataError, printable

PackOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=options.require_suffix(".safetensors", "a pack"),
        metavar="FILE",
        help="File to write. Its name must end in .safetensors.",
        rich_help_panel=OUTPUT,
    ),
]


def pack(
    members: options.Networks,
    output: PackOutput,
    vote: options.Vote = None,
    weights: options.Weights = None,
    tie: options.Tie = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Write an ensemble to one file with everything that fmcli predict needs.

    Example: fmcli ensemble pack checkpoints/quick --output quick.safetensors
    """
    options.refuse_to_replace(output, overwrite)

    from fmcli.members.compose import check_not_packed, fit_ensemble, pack_ensemble
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    check_not_packed(pool)
    combiner = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights)
    try:
        fitted = fit_ensemble(pool, combiner, data_root=data_root)
    except DataError as error:
        if combiner.needs_fit:
            raise
        terminal.note(f"packed without a temperature, which needs validation images: {printable(error.message)}")
        fitted = replace(pool, combiner=combiner, fitted_on=None)
    pack_ensemble(output, fitted)
    terminal.write(f"{output}\n")
