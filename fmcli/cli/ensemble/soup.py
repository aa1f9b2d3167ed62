"""`fmcli ensemble soup`."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.choices import SoupMethod
from fmcli.cli.member_pool import open_members
from fmcli.cli.options import DataRoot, Device, Networks, Quiet, Verbose
from fmcli.errors import printable


def soup(
    members: Networks,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The member's folder to make.", show_default=False)
    ],
    method: Annotated[
        SoupMethod,
        typer.Option(help="greedy: the best members while validation accuracy does not fall; uniform: all."),
    ] = "greedy",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the soup that is there.")] = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Average the weights of members of one network into a new member, which is as quick as one.

    It pays for snapshots and other members that began from the same weights; networks of different seeds lie too far
    apart.

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
        terminal.note(f"no average is as good as {printable(made.members[0])} on validation images: it is taken alone")
    else:
        terminal.note(f"averaged {len(made.members)} of {len(pool.members)}: {', '.join(map(printable, made.members))}")
    if made.accuracy is not None:
        terminal.note(
            f"validation accuracy {percent(made.accuracy)} %; the best member alone has {percent(made.best_member)} %"
        )
    terminal.write(f"{output}\n")
