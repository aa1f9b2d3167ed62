"""`fmcli ensemble …`."""

from typing import Annotated

import typer

from fmcli.choices import TieRule, VotingRule
from fmcli.cli.figures import evaluation_drawers, write_plots
from fmcli.cli.members import open_members, tell_scaling
from fmcli.cli.options import (
    Checkpoints,
    DataRoot,
    Device,
    FormatOption,
    Plots,
    Quiet,
    Split,
    Verbose,
    command_group,
)

app = command_group("Combine trained members, of whatever networks, by vote.")


Vote = Annotated[VotingRule | None, typer.Option(help="Voting rule; by default the recipe's.")]
Tie = Annotated[TieRule | None, typer.Option(help="Which tied class wins; by default the recipe's rule.")]


@app.command("evaluate")
def evaluate_ensemble(
    checkpoints: Checkpoints,
    vote: Vote = None,
    tie: Tie = None,
    split: Split = "test",
    device: Device = "auto",
    data_root: DataRoot = None,
    plots: Plots = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score the vote of all members, beside each of them.

    Example: fmcli ensemble evaluate checkpoints/quick
    """
    from fmcli.device import resolve_device
    from fmcli.ensemble import choose_rules, evaluate_ensemble
    from fmcli.inference import predict_splits
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.evaluations import ensemble_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    members = open_members(checkpoints, where, terminal)
    rules = choose_rules([member.header.ensemble for member in members], vote=vote, tie=tie)
    tell_scaling(members, split, terminal)
    predictions = predict_splits(members, split, device=where, data_root=data_root)
    references = [member.header.reference for member in members]
    reference = references[0] if all(other == references[0] for other in references) else None
    emit(ensemble_document(evaluate_ensemble(predictions, rules), reference), format_, terminal)
    if plots is not None:
        write_plots(plots, evaluation_drawers(predictions, rules, members[0].header.data, data_root), terminal)
