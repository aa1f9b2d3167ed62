"""Options and arguments that several commands share, and checks of their values."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import typer

from fmcli.choices import RULE_NAMES, Format, RuleName, SplitName, TieRule, Views
from fmcli.cli.command import INPUT, MACHINE, OUTPUT, TRAINING, VOTING, Group
from fmcli.errors import UsageError, printable
from fmcli.hardware.device import check_device_name
from fmcli.storage.atomic import check_writable


def command_group(help_: str) -> typer.Typer:
    """Return a group of commands with plain help; typer's panels would double the time to show it."""
    return typer.Typer(cls=Group, help=help_, no_args_is_help=True, rich_markup_mode=None)


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names of shipped recipes that start with some text, for completion in the shell."""
    from fmcli.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def refuse_to_replace(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, unless it may be replaced.

    Raises:
        UsageError: It exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{printable(path)} already exists", remedies=["replace"])


def require_suffix(suffix: str, kind: str) -> Callable[[Path], Path]:
    """Return a callback that checks the suffix of an output file and that its folder is writable."""

    def check(path: Path) -> Path:
        if path.suffix != suffix:
            suggestion = path.with_suffix(suffix) if path.name else f"chosen{suffix}"
            raise UsageError(
                f"the name of {kind} must end in {suffix}; got {printable(path)}",
                hint=f"use --output {printable(suggestion)}",
            )
        check_writable(path)
        return path

    return check


def _check_plot_folder(folder: Path | None) -> Path | None:
    """Check that figures can be written into a folder, before a long training."""
    if folder is not None:
        check_writable(folder / "figure.png")
    return folder


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also list the files that are read and written.", rich_help_panel=OUTPUT),
]
FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help=f"Format of the result: {', '.join(get_args(Format))}.",
        rich_help_panel=OUTPUT,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        callback=check_device_name,
        help="auto, cpu, cuda, cuda:N or mps. auto uses a GPU if there is one.",
        rich_help_panel=MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of CPU threads. Default: one per core.", rich_help_panel=MACHINE),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="FMCLI_DATA",
        metavar="DIR",
        help="Folder of datasets. fmcli looks here first for built-in datasets, and fmcli data fetch downloads to it. "
        "A relative path in data.source that does not exist in the current folder is also looked up here.",
        rich_help_panel=MACHINE,
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="Name of a shipped recipe (see fmcli recipe list), or path of a .toml file.",
        autocompletion=complete_recipe,
        rich_help_panel=INPUT,
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a shipped recipe (see fmcli recipe list), or path of a .toml file.",
        autocompletion=complete_recipe,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, for example optimizer.lr=3e-4. Can be repeated.",
        rich_help_panel=INPUT,
    ),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the [data] table, for example 'data.size=[32,32]'. Can be repeated.",
        rich_help_panel=INPUT,
    ),
]
Members = Annotated[
    list[Path],
    typer.Argument(metavar="MEMBER", help="Runs, members, checkpoints, ensemble files, packs or predictions files."),
]
Networks = Annotated[
    list[Path],
    typer.Argument(
        metavar="MEMBER", help="Runs, members, checkpoints or ensemble files. Predictions files are not accepted."
    ),
]
TestTimeViews = Annotated[
    Views,
    typer.Option(
        help="Average predictions over views of each image: mirrored, shifted by a pixel, or both.",
        rich_help_panel=INPUT,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="True classes for predictions from other tools: a .npy array, or a text file with one class per line.",
        rich_help_panel=INPUT,
    ),
]
Vote = Annotated[
    RuleName | None,
    typer.Option(
        metavar="RULE",
        help=f"Voting rule: {', '.join(RULE_NAMES)}. Default: from the recipe.",
        rich_help_panel=VOTING,
    ),
]
Tie = Annotated[
    TieRule | None,
    typer.Option(help="How to break ties between classes. Default: from the recipe.", rich_help_panel=VOTING),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W,W,…",
        help="Weight of each member in order, for example 2,1,1. Default: from the recipe, or fitted.",
        rich_help_panel=VOTING,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="G,G,…",
        help="For rules that need groups, such as two-level: group of each member in order, for example 3,3,5. "
        "Default: its kernel size.",
        rich_help_panel=VOTING,
    ),
]
Split = Annotated[SplitName, typer.Option(help="Images to score on.", rich_help_panel=INPUT)]
Plots = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        file_okay=False,
        callback=_check_plot_folder,
        help="Also write figures to this folder, as PNG files.",
        rich_help_panel=OUTPUT,
    ),
]
EnsembleOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        callback=require_suffix(".toml", "an ensemble file"),
        metavar="FILE",
        help="Ensemble file to write, ending in .toml. The members must be in its folder or below.",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output if it exists.", rich_help_panel=OUTPUT)
]
Retrain = Annotated[
    bool,
    typer.Option("--overwrite", help="Delete existing runs and train from scratch.", rich_help_panel=TRAINING),
]
