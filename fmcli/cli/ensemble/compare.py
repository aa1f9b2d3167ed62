"""`fmcli ensemble compare`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.member_pool import (
    choose_rule,
    open_members,
    refuse_needless_labels,
    warn_fitted_on,
    warn_same_predictions,
)
from fmcli.cli.options import DataRoot, Device, FormatOption, Groups, Labels, Quiet, Split, Tie, Verbose, Vote
from fmcli.errors import UsageError


def compare(
    ensembles: Annotated[
        list[str],
        typer.Argument(
            help="Each a run, an ensemble file, a pack, or members with commas between them; NAME=… names it.",
            show_default=False,
        ),
    ],
    vote: Vote = None,
    tie: Tie = None,
    split: Split = "test",
    draws: Annotated[
        int | None,
        typer.Option(
            min=10,
            help="Draw about so many ensembles of mixed kernel sizes, and of each size alone, from all members, and "
            "compare these.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=2, help="With --draws: members of each; by default one a kernel size.", show_default=False),
    ] = None,
    groups: Groups = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --draws: draws them; by default 0.", show_default=False)
    ] = None,
    labels: Labels = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Set ensembles side by side on the same images: accuracy, differences, intervals and tests.

    With --draws, ask of one pool of members whether different kernel sizes vote better than one.

    Example: fmcli ensemble compare checkpoints/quick k3=checkpoints/quick/k3
    """
    if draws is None and (size is not None or groups is not None or seed is not None):
        raise UsageError("--size, --groups and --seed are for --draws", hint="add --draws 200")

    from fmcli.ensemble.comparison import compare_ensembles
    from fmcli.ensemble.heterogeneity import compare_heterogeneous
    from fmcli.members import predict_pool, vote_on_split
    from fmcli.report.comparison import comparison_document, study_document
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit

    terminal = Terminal(quiet=quiet, verbose=verbose)
    named = [_parse(word) for word in ensembles]
    if draws is not None:
        pool = open_members([path for _, paths in named for path in paths], device, terminal)
        refuse_needless_labels([pool], labels)
        rule = choose_rule(pool, terminal, vote=vote, tie=tie, groups=groups)
        predictions = predict_pool(pool.with_groups(rule.groups), split, data_root=data_root, labels=labels)
        study = compare_heterogeneous(predictions, rule, size=size, draws=draws, seed=seed or 0)
        emit(study_document(study, rule), format_, terminal)
        return
    pools = [open_members(paths, device, terminal) for _, paths in named]
    refuse_needless_labels(pools, labels)
    results = []
    for pool in pools:
        rule = choose_rule(pool, terminal, vote=vote, tie=tie)
        result = vote_on_split(pool, rule, split, data_root=data_root, labels=labels, calibrate=False)
        warn_same_predictions(pool, result.predictions, terminal)
        warn_fitted_on(pool, result.predictions, terminal)
        results.append(result)
    emit(comparison_document(compare_ensembles([name for name, _ in named], results)), format_, terminal)


def _parse(word: str) -> tuple[str, list[Path]]:
    """Return the name and the places of an ensemble: PATH, PATH,PATH or NAME=PATH,PATH."""
    if os.path.exists(word):  # pathlib raises where a name is too long, as a list may be
        return word.rstrip("/"), [Path(word)]
    name, equals, places = word.partition("=")
    paths = [Path(place) for place in (places if equals else word).split(",") if place]
    if not paths or not name:
        raise UsageError(f"{word!r} names no ensemble", hint="PATH, PATH,PATH or NAME=PATH,PATH")
    return name if equals else word, paths
