"""`fmcli ensemble …`."""

from enum import StrEnum
from typing import Annotated

import typer

from fmcli.cli.options import (
    Checkpoints,
    DataRoot,
    Device,
    FormatOption,
    OutputFormat,
    Quiet,
    Split,
    SplitName,
    Verbose,
)

app = typer.Typer(help="Combine trained members, of whatever networks, by vote.", no_args_is_help=True)


class VoteName(StrEnum):
    """`--vote`."""

    MAJORITY = "majority"
    SOFT = "soft"


class TieName(StrEnum):
    """`--tie`."""

    PROBABILITY = "probability"
    LOWEST = "lowest"
    FIRST = "first"


Vote = Annotated[VoteName | None, typer.Option(help="Voting rule; by default the recipe's.")]
Tie = Annotated[TieName | None, typer.Option(help="Which tied class wins; by default the recipe's rule.")]


@app.command("evaluate")
def evaluate_ensemble(
    checkpoints: Checkpoints,
    vote: Vote = None,
    tie: Tie = None,
    split: Split = SplitName.TEST,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = OutputFormat.TABLE,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score the vote of all members, beside each of them.

    Example: fmcli ensemble evaluate checkpoints/quick
    """
    from fmcli.checkpoint import find_checkpoints
    from fmcli.device import resolve_device
    from fmcli.ensemble import choose_rules, evaluate_ensemble
    from fmcli.inference import load_members, predict_splits
    from fmcli.report.console import Terminal
    from fmcli.report.document import Format, emit
    from fmcli.report.evaluations import ensemble_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    members = load_members(find_checkpoints(checkpoints), device=where)
    for member in members:
        terminal.detail(f"read {member.path}")
    rules = choose_rules([member.header.ensemble for member in members], vote=vote, tie=tie)
    predictions = predict_splits(members, split, device=where, data_root=data_root)
    emit(ensemble_document(evaluate_ensemble(predictions, rules)), Format(format_), terminal)
