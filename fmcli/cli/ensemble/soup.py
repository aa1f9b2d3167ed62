"""`fmcli ensemble soup`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.choices import SoupMethod
from fmcli.cli import options
from fmcli.cli.command import OUTPUT, SELECTION
from fmcli.cli.member_pool import open_members
from fmcli.errors import printable

Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", file_okay=False, metavar="DIR", help="Folder of the new member.", rich_help_panel=OUTPUT
    ),
]
Method = Annotated[
    SoupMethod,
    typer.Option(
        help="greedy: try members from best to worst; keep each that does not lower validation accuracy. "
        "uniform: average all.",
        rich_help_panel=SELECTION,
    ),
]


def soup(
    members: options.Networks,
    output: Output,
    method: Method = "greedy",
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Average the weights of members with the same network into one new member.

    The new member predicts as fast as a single one. This helps if the members started from the same weights, as
    snapshots do. The weights of members with different seeds are too far apart.

    Example: fmcli ensemble soup checkpoints/snapshots --output checkpoints/soup
    """
    from fmcli.members.soup import check_soup_folder, make_soup
    from fmcli.report.console import Terminal
    from fmcli.report.document import percent

    check_soup_folder(output, overwrite=overwrite)
    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    made = make_soup(pool, output, method=method, overwrite=overwrite, data_root=data_root)
    if len(made.members) == 1:
        terminal.note(
            f"no average is as good as {printable(made.members[0])} on validation images; using its weights unchanged"
        )
    else:
        terminal.note(f"averaged {len(made.members)} of {len(pool.members)}: {', '.join(map(printable, made.members))}")
    if made.accuracy is not None:
        terminal.note(f"validation accuracy {percent(made.accuracy)} %; best member {percent(made.best_member)} %")
    terminal.write(f"{output}\n")
