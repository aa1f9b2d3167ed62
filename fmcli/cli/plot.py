"""`fmcli plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from fmcli.choices import FIGURES, FigureChoice, FigureName, FileFormat, SplitName, TieRule, VotingRule
from fmcli.cli import options
from fmcli.cli.data_spec import find_data_spec
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.cli.plotters import (
    Plotters,
    data_plotters,
    draw_figures,
    draw_later,
    evaluation_plotters,
    run_curve_plotters,
    save_figures,
    trial_plotters,
)
from fmcli.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from fmcli.recipe import DataSpec
    from fmcli.report.console import Terminal

DATA_FIGURES: tuple[FigureName, ...] = ("samples", "class-counts")
TRAINING_FIGURES: tuple[FigureName, ...] = ("curves",)
SEARCH_FIGURES: tuple[FigureName, ...] = ("trials",)


def plot(
    kind: Annotated[
        FigureChoice,
        typer.Argument(metavar="FIGURE", help=f"One of {', '.join(get_args(FigureName))}, or all."),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Runs, members, checkpoints, ensemble files, packs or predictions files. For samples and class-counts "
            "also recipes and data sources. For trials the folder of a search.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="A .png, .svg or .pdf file. For all, a folder."),
    ],
    split: Annotated[
        SplitName | None,
        typer.Option(help="Images to use. Default: test, but train for samples."),
    ] = None,
    file_format: Annotated[FileFormat | None, typer.Option(help="File format for all. Default: png.")] = None,
    vote: options.Vote = None,
    tie: options.Tie = None,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Draw a figure and print its path. Several members are shown by their vote; curves show each of them.

    all draws every figure of a run and skips those without data.

    Example: fmcli plot confusion checkpoints/quick --output confusion.pdf
    """
    files = _plan_files(kind, output, file_format)

    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    plotters = {
        **draw_later(DATA_FIGURES, lambda: data_plotters(_common_spec(sources), data_root, split=split or "train")),
        **draw_later(TRAINING_FIGURES, lambda: run_curve_plotters([Path(source) for source in sources])),
        **draw_later(SEARCH_FIGURES, lambda: trial_plotters(sources)),
    }
    plotters |= draw_later(
        [name for name in files if name not in plotters],
        lambda: _evaluation_plotters(sources, split or "test", vote, tie, device, data_root, terminal),
    )
    wanted: Plotters = {name: plotters[name] for name in files}
    figures = draw_figures(wanted, terminal, strict=kind != "all")
    for path in save_figures(figures, files, terminal):
        terminal.write(f"{path}\n")


def _plan_files(kind: FigureChoice, output: Path, file_format: FileFormat | None) -> dict[FigureName, Path]:
    """Return the path of each figure, after checking the output path."""
    from fmcli.report.plots import check_ending

    if kind != "all":
        if file_format is not None:
            raise UsageError(
                "--file-format is only for all figures",
                hint="the name of the output file sets the format of one figure",
            )
        check_ending(output)
        return {kind: output}
    if output.is_file() or output.suffix.lower() in (".png", ".svg", ".pdf"):
        raise UsageError(f"all figures need a folder; {printable(output)} is the name of a file", hint="--output DIR")
    return {name: output / f"{name}.{file_format or 'png'}" for name in FIGURES}


def _common_spec(sources: Sequence[str]) -> DataSpec:
    """Return the `[data]` table that all sources have in common.

    Raises:
        DataError: The tables differ, or a source holds only predictions.
    """
    try:
        first, *others = [find_data_spec(source) for source in sources]
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error
    for source, other in zip(sources[1:], others, strict=True):
        if other != first:
            raise DataError(
                f"{printable(source)} and {printable(sources[0])} have different images or splits",
                hint="name one of them",
            )
    return first


def _evaluation_plotters(
    sources: Sequence[str],
    split: SplitName,
    vote: VotingRule | None,
    tie: TieRule | None,
    device: str,
    data_root: Path | None,
    terminal: Terminal,
) -> Plotters:
    """Compute the vote of the members and return its plotters."""
    from fmcli.members.validation import vote_on_split

    pool = open_members([Path(source) for source in sources], device, terminal)
    rule = choose_rule(pool, terminal, vote=vote, tie=tie)
    result = vote_on_split(pool, rule, split, data_root=data_root, calibrate=False)
    return evaluation_plotters(pool, result, data_root)
