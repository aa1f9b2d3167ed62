"""`fmcli ensemble compare`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli import options
from fmcli.cli.command import COMPARISON
from fmcli.cli.member_pool import choose_rule, open_members, refuse_unused_labels, warn_biased_vote
from fmcli.errors import UsageError

Ensembles = Annotated[
    list[str],
    typer.Argument(
        metavar="ENSEMBLE",
        help="A run, an ensemble file, a pack, or members separated by commas. NAME=… gives it a name.",
    ),
]
Draws = Annotated[
    int | None,
    typer.Option(
        min=10,
        metavar="N",
        help="Draw about N random ensembles of mixed kernel sizes and about N of each single kernel size, and compare "
        "them.",
        rich_help_panel=COMPARISON,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="With --draws: members per ensemble. Default: the number of kernel sizes.",
        rich_help_panel=COMPARISON,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="G,G,…",
        help="With --draws: group of each member in order, for example 3,3,5. Default: its kernel size.",
        rich_help_panel=COMPARISON,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="With --draws: random seed. Default: 0.", rich_help_panel=COMPARISON),
]


def compare(
    ensembles: Ensembles,
    split: options.Split = "test",
    labels: options.Labels = None,
    draws: Draws = None,
    size: Size = None,
    groups: Groups = None,
    seed: Seed = None,
    vote: options.Vote = None,
    tie: options.Tie = None,
    format_: options.FormatOption = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Compare ensembles on the same images: accuracy, differences, confidence intervals and significance tests.

    With --draws, all members form one pool, and ensembles with mixed kernel sizes are compared with ensembles of a
    single kernel size.

    Examples:
        fmcli ensemble compare checkpoints/quick k3=checkpoints/quick/k3
        fmcli ensemble compare a=run/k3,run/k5 b=run/k5,run/k7 --vote soft
    """
    if draws is None and (size is not None or groups is not None or seed is not None):
        raise UsageError("--size, --groups and --seed need --draws", hint="add --draws 200")

    from fmcli.ensemble.comparison import compare_ensembles
    from fmcli.ensemble.heterogeneity import compare_heterogeneous
    from fmcli.members.predict import predict_pool
    from fmcli.members.vote import vote_on_split
    from fmcli.report.comparison import comparison_document, study_document
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit

    terminal = Terminal(quiet=quiet, verbose=verbose)
    named = [_parse(word) for word in ensembles]
    if draws is not None:
        pool = open_members([path for _, paths in named for path in paths], device, terminal, labels=labels)
        drawn_rule = choose_rule(pool, terminal, vote=vote, tie=tie, groups=groups).rule
        predictions = predict_pool(replace(pool, groups=drawn_rule.groups), split, data_root=data_root, labels=labels)
        study = compare_heterogeneous(predictions, drawn_rule, size=size, draws=draws, seed=seed or 0)
        emit(study_document(study, drawn_rule), format_, terminal)
        return
    pools = [open_members(paths, device, terminal) for _, paths in named]
    refuse_unused_labels(pools, labels)
    results = []
    for pool in pools:
        combiner = choose_rule(pool, terminal, vote=vote, tie=tie)
        result = vote_on_split(pool, combiner, split, data_root=data_root, labels=labels, calibrate=False)
        warn_biased_vote(pool, result.predictions, terminal)
        results.append(result)
    emit(comparison_document(compare_ensembles([name for name, _ in named], results)), format_, terminal)


def _parse(word: str) -> tuple[str, list[Path]]:
    """Return the name and the paths of an ensemble: PATH, PATH,PATH or NAME=PATH,PATH."""
    if os.path.exists(word):  # pathlib raises an error if the word is too long for a name
        return word.rstrip("/"), [Path(word)]
    name, equals, listed = word.partition("=")
    paths = [Path(path) for path in (listed if equals else word).split(",") if path]
    if not paths or not name:
        raise UsageError(f"{word!r} is not an ensemble", hint="give PATH, PATH,PATH or NAME=PATH,PATH")
    return name if equals else word, paths
