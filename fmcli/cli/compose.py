"""`fmcli ensemble fit`, `select`, `pack`, `unpack` and `soup`: commands that make an ensemble, or take one apart."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.choices import Measure, SelectionMethod, SoupMethod
from fmcli.cli.members import choose_rule, open_members, refuse_needless_labels
from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Groups,
    Labels,
    Members,
    Networks,
    Quiet,
    Tie,
    Verbose,
    Vote,
    Weights,
)
from fmcli.errors import DataError, UsageError, printable
from fmcli.storage.atomic import check_place


def _check_output(path: Path) -> Path:
    check_place(path)
    return path


def _check_ensemble_file(path: Path) -> Path:
    if path.suffix != ".toml":
        raise UsageError(
            f"an ensemble file's name ends in .toml; got {printable(path)}",
            hint=f"--output {printable(path.with_suffix('.toml') if path.name else 'chosen.toml')}",
        )
    return _check_output(path)


EnsembleOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=_check_ensemble_file,
        help="The ensemble file, ending in .toml; members lie below its folder.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def _refuse_to_replace(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(f"{printable(path)} is there already", hint="--overwrite replaces it")


def fit(
    members: Members,
    output: EnsembleOutput,
    vote: Vote = None,
    tie: Tie = None,
    weights: Weights = None,
    groups: Groups = None,
    labels: Labels = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Learn a rule's weights and temperature on validation data, and write an ensemble file.

    That file stands for a run: evaluate, predict, plot and the ensemble commands take it.

    Example: fmcli ensemble fit checkpoints/quick --vote weighted-soft --output checkpoints/fitted.toml
    """
    _refuse_to_replace(output, overwrite)

    from fmcli.members.compose import fit_ensemble, write_ensemble
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit
    from fmcli.report.ensemble_files import fit_document

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    refuse_needless_labels([pool], labels)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights, groups=groups)
    if rule.is_fitted:
        terminal.note("this ensemble has learnt already: it is written as it was")
    composed = fit_ensemble(pool, rule, data_root=data_root, labels=labels)
    write_ensemble(output, composed)
    accuracy = composed.fitted_on.accuracy if composed.fitted_on else None
    emit(fit_document(pool.names, composed.rule, accuracy, output), format_, terminal)


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
    _refuse_to_replace(output, overwrite)
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


def pack(
    members: Networks,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", callback=_check_output, help="The file, ending in .safetensors.", show_default=False
        ),
    ],
    vote: Vote = None,
    tie: Tie = None,
    weights: Weights = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an ensemble as one file: members, rule, temperature, classes and all that predict needs.

    Example: fmcli ensemble pack checkpoints/quick --output quick.safetensors
    """
    if output.suffix != ".safetensors":
        raise UsageError(f"a pack's name ends in .safetensors; got {printable(output)}")
    _refuse_to_replace(output, overwrite)

    from fmcli.members.compose import Composed, fit_ensemble, pack_ensemble, refuse_packed
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members(members, device, terminal)
    refuse_packed(pool)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie, weights=weights)
    try:
        composed = fit_ensemble(pool, rule, data_root=data_root)
    except DataError as error:
        if rule.needs_fit:
            raise
        terminal.note(f"packed without a temperature, which is learnt on validation images: {printable(error.message)}")
        composed = Composed(pool, rule, None)
    pack_ensemble(output, composed)
    terminal.write(f"{output}\n")


def unpack(
    packed: Annotated[Path, typer.Argument(help="A file of fmcli ensemble pack.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The folder to make.", show_default=False)
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take a pack apart into a run folder again, each file as it was, with an ensemble file for its rule.

    Example: fmcli ensemble unpack quick.safetensors --output checkpoints/quick-again
    """
    from fmcli.checkpoints.pack import ENSEMBLE_FILE
    from fmcli.checkpoints.pack import unpack as take_apart
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    for folder in take_apart(packed, output):
        terminal.detail(f"wrote {printable(folder)}")
    ensemble = output / ENSEMBLE_FILE
    terminal.note(f"The rule is in {printable(ensemble)}. Next: fmcli ensemble evaluate {printable(ensemble)}")
    terminal.write(f"{ensemble}\n")


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
