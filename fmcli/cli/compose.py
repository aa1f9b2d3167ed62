"""`fmcli ensemble fit`, `select`, `pack`, `unpack` and `soup`: commands that make an ensemble, or take one apart."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.choices import Measure, SelectionMethod, SoupMethod
from fmcli.cli.members import open_members, parse_numbers
from fmcli.cli.options import (
    DataRoot,
    Device,
    FormatOption,
    Groups,
    Labels,
    Members,
    Quiet,
    Tie,
    Verbose,
    Vote,
    Weights,
)
from fmcli.errors import UsageError, printable
from fmcli.files import check_place


def _check_output(path: Path) -> Path:
    check_place(path)
    return path


EnsembleOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=_check_output,
        help="The ensemble file; members lie below its folder.",
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
    overwrite: Overwrite = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    format_: FormatOption = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Learn a rule's weights and temperature on validation data, and write an ensemble file.

    Every command takes that file in place of a run.

    Example: fmcli ensemble fit checkpoints/quick --vote weighted-soft --output checkpoints/fitted.toml
    """
    _refuse_to_replace(output, overwrite)

    from fmcli.compose import fit_ensemble, write_ensemble
    from fmcli.device import resolve_device
    from fmcli.report.comparisons import fit_document
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    pool = open_members(members, where, terminal)
    rule = pool.choose_rule(
        vote=vote, tie=tie, weights=parse_numbers(weights, "--weights"), groups=groups.split(",") if groups else None
    )
    composed = fit_ensemble(pool, rule, device=where, data_root=data_root)
    write_ensemble(output, composed)
    accuracy = composed.learnt_on.accuracy if composed.learnt_on else None
    emit(fit_document(pool.names, composed.rule, accuracy, output), format_, terminal)


def select(
    members: Members,
    output: EnsembleOutput,
    method: Annotated[SelectionMethod, typer.Option(help="How to choose.")] = "greedy",
    size: Annotated[int, typer.Option(min=1, help="Members at most; with greedy, steps.")] = 20,
    by: Annotated[Measure, typer.Option(help="What makes an ensemble better than another.")] = "accuracy",
    bags: Annotated[
        int, typer.Option(min=0, help="Greedy: choose in so many random halves of the pool instead of in all of it.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Draws those halves.")] = 0,
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

    Greedy chooses with replacement, as Caruana et al. (2004): members that are chosen more often count more.

    Example: fmcli ensemble select checkpoints/*/ --size 10 --output checkpoints/chosen.toml
    """
    _refuse_to_replace(output, overwrite)

    from fmcli.compose import select_ensemble, write_ensemble
    from fmcli.device import resolve_device
    from fmcli.pool import predict_shared_validation
    from fmcli.report.comparisons import selection_document
    from fmcli.report.console import Terminal
    from fmcli.report.document import emit

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    pool = open_members(members, where, terminal)
    rule = pool.choose_rule(vote=vote, tie=tie)
    predictions = predict_shared_validation(pool, device=where, data_root=data_root, labels=labels)
    options = {"bags": bags, "seed": seed} if method == "greedy" else {}
    composed = select_ensemble(pool, predictions, rule, method=method, by=by, size=size, **options)
    write_ensemble(output, composed)
    assert composed.selection is not None
    document = selection_document(
        composed.pool.names, composed.rule, composed.selection, len(pool.members), len(predictions[0].labels), output
    )
    emit(document, format_, terminal)


def pack(
    members: Members,
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

    from fmcli.compose import fit_ensemble, pack_ensemble
    from fmcli.device import resolve_device
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    pool = open_members(members, where, terminal)
    rule = pool.choose_rule(vote=vote, tie=tie, weights=parse_numbers(weights, "--weights"))
    pack_ensemble(output, fit_ensemble(pool, rule, device=where, data_root=data_root))
    terminal.write(f"{output}\n")


def unpack(
    packed: Annotated[Path, typer.Argument(help="A file of fmcli ensemble pack.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The folder to make.", show_default=False)
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take a pack apart into a run folder again, each file as it was.

    Example: fmcli ensemble unpack quick.safetensors --output checkpoints/quick-again
    """
    from fmcli.pack import unpack as take_apart
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    for folder in take_apart(packed, output):
        terminal.detail(f"wrote {printable(folder)}")
    terminal.write(f"{output}\n")


def soup(
    members: Members,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The member's folder to make.", show_default=False)
    ],
    method: Annotated[
        SoupMethod, typer.Option(help="Take the best while validation accuracy holds, or all.")
    ] = "greedy",
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
    from fmcli.device import resolve_device
    from fmcli.report.console import Terminal
    from fmcli.report.document import percent
    from fmcli.soup import make_soup

    terminal = Terminal(quiet=quiet, verbose=verbose)
    where = resolve_device(device)
    pool = open_members(members, where, terminal)
    made = make_soup(pool, output, method=method, device=where, data_root=data_root)
    terminal.note(f"averaged {len(made.members)} of {len(pool.members)}: {', '.join(map(printable, made.members))}")
    if made.accuracy is not None:
        terminal.note(
            f"validation accuracy {percent(made.accuracy)} %; the best member alone has {percent(made.best_member)} %"
        )
    terminal.write(f"{output}\n")
