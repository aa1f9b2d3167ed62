"""What several commands share: options, each written once, and the way a group of commands is set up."""

from pathlib import Path
from typing import Annotated

import typer

from fmcli.choices import Format, SplitName, TieRule, Views, VotingRule
from fmcli.hardware.device import check_device_name
from fmcli.storage.atomic import check_place


def command_group(help_: str) -> typer.Typer:
    """Return a group of commands. Help is plain text: typer's panels would double the time to show it."""
    return typer.Typer(help=help_, no_args_is_help=True, rich_markup_mode=None)


def complete_recipe(incomplete: str) -> list[str]:
    """Return the shipped recipes that begin so."""
    from fmcli.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is read and written.")]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to write the result.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=check_device_name,
        help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads; by default one a core.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="FMCLI_DATA",
        metavar="DIR",
        help="Folder of datasets: searched first, filled by data fetch; relative places in data.source are looked for "
        "here if they are not in the current folder.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="A shipped recipe's name, or a path.",
        autocompletion=complete_recipe,
        show_default=False,
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(help="A shipped recipe's name, or a path.", autocompletion=complete_recipe, show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override the recipe, e.g. --set optimizer.lr=3e-4; may be repeated.",
        metavar="KEY=VALUE",
    ),
]
Members = Annotated[
    list[Path],
    typer.Argument(
        metavar="MEMBER",
        help="Runs, members, checkpoints, ensemble files, packs, or files of predictions.",
        show_default=False,
    ),
]
Networks = Annotated[
    list[Path],
    typer.Argument(
        metavar="MEMBER",
        help="Runs, members, checkpoints or ensemble files; networks, not predictions alone.",
        show_default=False,
    ),
]
TestTimeViews = Annotated[
    Views, typer.Option("--tta", help="Average over views of each image: mirrored, moved by a pixel, or both.")
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE",
        help="True classes for predictions of other tools: a .npy of integers, or a text with one class a line.",
        show_default=False,
    ),
]
Vote = Annotated[VotingRule | None, typer.Option(help="Voting rule; by default the recipe's.", show_default=False)]
Tie = Annotated[
    TieRule | None, typer.Option(help="Which tied class wins; by default the recipe's rule.", show_default=False)
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W,W,…",
        help="Weight of each member, in order: 2,1,1. Without it, those of the recipe; else weighted rules learn "
        "them on validation images.",
        show_default=False,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="G,G,…",
        help="Group of each member for --vote two-level, in order: 3,3,5. By default its kernel size.",
        show_default=False,
    ),
]
Split = Annotated[SplitName, typer.Option("--split", help="Which images to score on.")]


def _check_folder(folder: Path | None) -> Path | None:
    """Refuse before any training a folder that figures could not be written into."""
    if folder is not None:
        check_place(folder / "figure.png")
    return folder


Plots = Annotated[
    Path | None,
    typer.Option(
        "--plots",
        metavar="DIR",
        file_okay=False,
        callback=_check_folder,
        help="Also draw figures into this folder, as PNG.",
        show_default=False,
    ),
]
