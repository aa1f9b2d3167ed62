"""`fmcli plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcli.choices import FIGURES, FigureChoice, FigureName, FileFormat, SplitName, TieRule, VotingRule
from fmcli.cli.data_spec import data_spec
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.cli.options import DataRoot, Device, Quiet, Tie, Verbose, Vote
from fmcli.cli.plotters import (
    Drawers,
    curve_drawers_of,
    data_drawers,
    draw_figures,
    draw_later,
    evaluation_drawers,
    save_figures,
    trial_drawers,
)
from fmcli.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from fmcli.recipe import DataSpec
    from fmcli.report.console import Terminal

_OF_DATA: tuple[FigureName, ...] = ("samples", "class-counts")
_OF_TRAINING: tuple[FigureName, ...] = ("curves",)
_OF_SEARCH: tuple[FigureName, ...] = ("trials",)


def plot(
    kind: Annotated[FigureChoice, typer.Argument(help="Which figure, or all of them.", show_default=False)],
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="PLACE",
            help="Runs, members, checkpoints, ensemble files, packs or predictions; for samples and class-counts also "
            "recipes and sources; for trials a search's folder.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A file that ends in .png, .svg or .pdf; for all, a folder.", show_default=False
        ),
    ],
    split: Annotated[
        SplitName | None,
        typer.Option(help="Which images; by default test, for samples train.", show_default=False),
    ] = None,
    file_format: Annotated[
        FileFormat | None, typer.Option(help="How all figures are written; by default png.", show_default=False)
    ] = None,
    vote: Vote = None,
    tie: Tie = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw a figure, of the vote where there are several members, and print where it is.

    Curves show every member. With all, what there is nothing to draw from is left out with a note.

    Example: fmcli plot confusion checkpoints/quick --output confusion.pdf
    """
    files = _plan(kind, output, file_format)

    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    drawers = {
        **draw_later(_OF_DATA, lambda: data_drawers(_common_spec(places), data_root, split=split or "train")),
        **draw_later(_OF_TRAINING, lambda: curve_drawers_of([Path(place) for place in places])),
        **draw_later(_OF_SEARCH, lambda: trial_drawers(places)),
    }
    drawers |= draw_later(
        [name for name in files if name not in drawers],
        lambda: _evaluation(places, split or "test", vote, tie, device, data_root, terminal),
    )
    wanted: Drawers = {name: drawers[name] for name in files}
    figures = draw_figures(wanted, terminal, strict=kind != "all")
    for path in save_figures(figures, files, terminal):
        terminal.write(f"{path}\n")


def _plan(kind: FigureChoice, output: Path, file_format: FileFormat | None) -> dict[FigureName, Path]:
    """Return the file that each figure goes into, having checked that it can be named so."""
    from fmcli.report.plots import check_ending

    if kind != "all":
        if file_format is not None:
            raise UsageError("--file-format is for all figures", hint="one alone is written as its file's name ends")
        check_ending(output)
        return {kind: output}
    if output.is_file() or output.suffix.lower() in (".png", ".svg", ".pdf"):
        raise UsageError(f"all figures need a folder, and {printable(output)} names a file", hint="--output DIR")
    return {name: output / f"{name}.{file_format or 'png'}" for name in FIGURES}


def _common_spec(places: Sequence[str]) -> DataSpec:
    """Return the one `[data]` table that all places stand for.

    Raises:
        DataError: They differ, or one holds predictions alone.
    """
    try:
        first, *others = [data_spec(place) for place in places]
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error
    for place, other in zip(places[1:], others, strict=True):
        if other != first:
            raise DataError(
                f"{printable(place)} and {printable(places[0])} have other images, or split them otherwise",
                hint="name one place",
            )
    return first


def _evaluation(
    places: Sequence[str],
    split: SplitName,
    vote: VotingRule | None,
    tie: TieRule | None,
    device: str,
    data_root: Path | None,
    terminal: Terminal,
) -> Drawers:
    """Let the members predict, and return what draws their vote."""
    from fmcli.members import vote_on_split

    pool = open_members([Path(place) for place in places], device, terminal)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie)
    result = vote_on_split(pool, rule, split, data_root=data_root, calibrate=False)
    return evaluation_drawers(pool, result, data_root)
