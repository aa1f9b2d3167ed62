"""`fmcli ensemble select`."""

from typing import Annotated

import typer

from fmcli.choices import Measure, SelectionMethod
from fmcli.cli.member_pool import choose_rule, open_members, refuse_needless_labels
from fmcli.cli.options import (
    DataRoot,
    Device,
    EnsembleOutput,
    FormatOption,
    Labels,
    Members,
    Overwrite,
    Quiet,
    Tie,
    Verbose,
    Vote,
    refuse_to_replace,
)
from fmcli.errors import UsageError


def select(
    members: Members,
    output: EnsembleOutput,
    method: Annotated[SelectionMethod, typer.Option(help="How to choose.")] = "greedy",
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most members to choose; of greedy, its steps. By default greedy 20, diverse 10, exhaustive 3.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[Measure, typer.Option(help="What makes an ensemble better than another.")] = "accuracy",
    bags: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Greedy only: choose from so many random halves of the pool, and add up how often each is taken.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of those halves; by default 0.", show_default=False)
    ] = None,
    vote: Vote = None,
    tie: Tie = None,
    labels: Labels = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose members of a pool on validation data alone, and write an ensemble file.

    greedy: add the member that makes the vote best, again and again; who is chosen more often counts more.

    diverse: the same, each once, among those that differ most from the vote so far.

    exhaustive: the best of all subsets, of small pools.

    Example: fmcli ensemble select checkpoints/quick checkpoints/snapshots --size 3 --output checkpoints/chosen.toml
    """
    refuse_to_replace(output, overwrite)
    of_greedy = [option for option, value in (("--bags", bags), ("--seed", seed)) if value is not None]
    if of_greedy and method != "greedy":
        raise UsageError(f"{of_greedy[0]} is for --method greedy, and {method} draws nothing", hint="leave it out")

    from fmcli.members import predict_shared_validation
    from fmcli.members.compose import select_ensemble, write_ensemble
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_files import selection_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    refuse_needless_labels([pool], labels)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie)
    predictions = predict_shared_validation(pool, data_root=data_root, labels=labels)
    given = {"size": size, "bags": bags, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    composed = select_ensemble(pool, predictions, rule, method=method, by=by, **options)
    write_ensemble(output, composed)
    assert composed.selection is not None
    document = selection_document(
        composed.rule, composed.selection, pool.names, by, n_images=len(predictions[0].labels), output=output
    )
    emit(document, format_, terminal)
