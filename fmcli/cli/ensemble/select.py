"""`fmcli ensemble select`."""

from typing import Annotated

import typer

from fmcli.choices import Measure, SelectionMethod
from fmcli.cli import options
from fmcli.cli.member_pool import choose_rule, open_members, refuse_unused_labels
from fmcli.errors import UsageError


def select(
    members: options.Members,
    output: options.EnsembleOutput,
    method: Annotated[SelectionMethod, typer.Option(help="Selection method, see above.")] = "greedy",
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Maximum number of members; for greedy, the number of steps. Default: greedy 20, diverse 10, "
            "exhaustive 3.",
        ),
    ] = None,
    by: Annotated[Measure, typer.Option(help="Score to improve.")] = "accuracy",
    bags: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="For greedy: select from N random halves of the pool and add up the selections."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Random seed for --bags. Default: 0.")] = None,
    vote: options.Vote = None,
    tie: options.Tie = None,
    labels: options.Labels = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Select members on validation images and write an ensemble file.

    greedy: repeatedly add the member that improves the vote most. A member added twice gets twice the weight.

    diverse: as greedy, but each member at most once, chosen among those that disagree most with the vote so far.

    exhaustive: try all subsets. Only for small pools.

    Example: fmcli ensemble select checkpoints/quick checkpoints/snapshots --size 3 --output checkpoints/chosen.toml
    """
    options.refuse_to_replace(output, overwrite)
    greedy_options = [option for option, value in (("--bags", bags), ("--seed", seed)) if value is not None]
    if greedy_options and method != "greedy":
        raise UsageError(
            f"{greedy_options[0]} needs --method greedy; got --method {method}", hint=f"omit {greedy_options[0]}"
        )

    from fmcli.members.compose import select_ensemble, write_ensemble
    from fmcli.members.validation import predict_shared_validation
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_files import selection_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    refuse_unused_labels([pool], labels)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie)
    predictions = predict_shared_validation(pool, data_root=data_root, labels=labels)
    given = {"size": size, "bags": bags, "seed": seed}
    chosen = {name: value for name, value in given.items() if value is not None}
    composed = select_ensemble(pool, predictions, rule, method=method, by=by, **chosen)
    write_ensemble(output, composed)
    assert composed.selection is not None
    document = selection_document(
        composed.rule, composed.selection, pool.names, by, n_images=len(predictions[0].labels), output=output
    )
    emit(document, format_, terminal)
