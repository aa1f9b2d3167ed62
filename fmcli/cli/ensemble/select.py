"""`fmcli ensemble select`."""

from typing import Annotated

import typer

from fmcli.choices import Measure, SelectionMethod
from fmcli.cli import options
from fmcli.cli.command import SELECTION
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.errors import UsageError

Method = Annotated[SelectionMethod, typer.Option(help="How to select members; see above.", rich_help_panel=SELECTION)]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Maximum number of members. For greedy, the number of steps. Default: greedy 20, diverse 10, exhaustive "
        "3.",
        rich_help_panel=SELECTION,
    ),
]
By = Annotated[Measure, typer.Option(help="Validation score to improve.", rich_help_panel=SELECTION)]
Bags = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="For greedy: select from N random halves of the pool. A member's weight is the number of times it was "
        "selected.",
        rich_help_panel=SELECTION,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Random seed for --bags. Default: 0.", rich_help_panel=SELECTION),
]


def select(
    members: options.Members,
    output: options.EnsembleOutput,
    labels: options.Labels = None,
    size: Size = None,
    method: Method = "greedy",
    by: By = "accuracy",
    bags: Bags = None,
    seed: Seed = None,
    vote: options.Vote = None,
    tie: options.Tie = None,
    overwrite: options.Overwrite = False,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Select members on validation images and write an ensemble file.

    greedy: repeatedly add the member that improves the vote most. A member added twice gets twice the weight.

    diverse: start with the best member. Repeatedly look at the members that disagree most with the vote so far, and
    add the one that improves the vote most. Each member is added at most once.

    exhaustive: try all subsets. Only for small pools.

    Example: fmcli ensemble select checkpoints/quick --size 3 --output best.toml
    """
    options.refuse_to_replace(output, overwrite)
    chosen = {name: value for name, value in (("bags", bags), ("seed", seed)) if value is not None}
    if chosen and method != "greedy":
        option = f"--{next(iter(chosen))}"
        raise UsageError(f"{option} needs --method greedy; got --method {method}", hint=f"omit {option}")
    if size is not None:
        chosen["size"] = size

    from fmcli.members.compose import select_ensemble, write_ensemble
    from fmcli.members.validation import predict_shared_validation
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_files import selection_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal, labels=labels)
    combiner = choose_rule(pool, terminal, vote=vote, tie=tie)
    predictions = predict_shared_validation(pool, data_root=data_root, labels=labels)
    selected, selection = select_ensemble(pool, predictions, combiner, method=method, by=by, **chosen)
    write_ensemble(output, selected)
    document = selection_document(
        selected.choose_rule(), selection, pool.names, by, n_images=len(predictions[0].labels), output=output
    )
    emit(document, format_, terminal)
