"""`fmcli plot`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from fmcli.choices import FIGURES, FigureChoice, FigureName, FileFormat, SplitName
from fmcli.cli import options, plotters
from fmcli.cli.command import INPUT, OUTPUT
from fmcli.cli.data_spec import find_data_spec
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.cli.plotters import Plotters
from fmcli.errors import DataError, UsageError, printable

_IMAGE_FIGURES: tuple[FigureName, ...] = ("samples", "class-counts")
Figure = Annotated[
    FigureChoice,
    typer.Argument(
        metavar="FIGURE",
        show_choices=False,
        help=f"{', '.join(get_args(FigureName))}, or all: every figure of a run, except figures without data.",
    ),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Runs, members, checkpoints, ensemble files, packs or predictions files. The figures samples and "
        "class-counts also accept recipes and data sources; trials needs the folder of a search.",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A .png, .svg or .pdf file. If FIGURE is all, a folder.",
        rich_help_panel=OUTPUT,
    ),
]
Split = Annotated[
    SplitName | None,
    typer.Option(help="Images to use. Default: train for samples, otherwise test.", rich_help_panel=INPUT),
]
FileFormatOption = Annotated[
    FileFormat | None,
    typer.Option(help="If FIGURE is all: file format of the figures. Default: png.", rich_help_panel=OUTPUT),
]


def plot(
    kind: Figure,
    sources: Sources,
    output: Output,
    set_: options.DataOverrides = None,
    split: Split = None,
    vote: options.Vote = None,
    tie: options.Tie = None,
    file_format: FileFormatOption = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    data_root: options.DataRoot = None,
) -> None:
    """Draw a figure and print its path.

    If you give several members, a figure shows their vote. Learning curves show each member separately.

    Examples:
        fmcli plot confusion checkpoints/quick --output confusion.pdf
        fmcli plot all checkpoints/quick --output figures
        fmcli plot samples folder:pets --set 'data.size=[32,32]' --output samples.png
    """
    files = _plan_files(kind, output, file_format)
    if set_ and kind not in _IMAGE_FIGURES:
        raise UsageError("--set is only for the figures samples and class-counts", hint="omit it")

    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    paths = [Path(source) for source in sources]

    @cache
    def vote_plotters() -> Plotters:
        from fmcli.members.vote import vote_on_split

        pool = open_members(paths, device, terminal)
        combiner = choose_rule(pool, terminal, vote=vote, tie=tie)
        result = vote_on_split(pool, combiner, split or "test", data_root=data_root, calibrate=False)
        return plotters.evaluation_plotters(pool, result, data_root)

    image_plotters = cache(lambda: _image_plotters(sources, set_ or (), data_root, split or "train"))
    prepare: dict[FigureName, Callable[[], Plotters]] = {
        **dict.fromkeys(_IMAGE_FIGURES, image_plotters),
        "curves": lambda: plotters.run_curve_plotters(paths),
        "trials": lambda: plotters.trial_plotters(paths),
    }

    def draw(name: FigureName) -> Any:
        return prepare.get(name, vote_plotters)()[name]()

    figures: Plotters = {name: partial(draw, name) for name in files}
    for path in plotters.save_figures(figures, files, terminal, strict=kind != "all"):
        terminal.write(f"{path}\n")


def _plan_files(kind: FigureChoice, output: Path, file_format: FileFormat | None) -> dict[FigureName, Path]:
    """Return the path of each figure, after checking the output path."""
    from fmcli.report.plots.files import check_ending

    if kind != "all":
        if file_format is not None:
            raise UsageError(
                "--file-format is only for fmcli plot all", hint="omit it; the name of the output file sets the format"
            )
        check_ending(output)
        return {kind: output}
    if output.is_file() or output.suffix.lower() in (".png", ".svg", ".pdf"):
        raise UsageError(f"fmcli plot all needs a folder; got {printable(output)}", hint="give a folder with --output")
    return {name: output / f"{name}.{file_format or 'png'}" for name in FIGURES}


def _image_plotters(
    sources: Sequence[str], changes: Sequence[str], data_root: Path | None, split: SplitName
) -> Plotters:
    """Return the plotters of the images that all sources have in common.

    Raises:
        DataError: The sources have different images, or a source has only predictions.
    """
    from fmcli.data import load_splits
    from fmcli.recipe import resolve_data

    try:
        specs = {source: resolve_data(find_data_spec(source), changes) for source in sources}
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from error
    first = specs[sources[0]]
    for source, spec in specs.items():
        if spec != first:
            raise DataError(
                f"{printable(source)} and {printable(sources[0])} have different images or splits",
                hint="give one of them",
            )
    return plotters.data_plotters(first, load_splits(first, data_root), split=split)
