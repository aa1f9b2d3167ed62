"""The tree of commands."""

from typing import Annotated

import typer

import fmcli
from fmcli.cli import data, ensemble, evaluate, plot, predict, recipe, reproduce, search, train

app = typer.Typer(
    help="Train, combine and read ensembles of small-image classifiers.",
    epilog="Start with: fmcli data fetch, fmcli train --recipe quick, fmcli ensemble evaluate checkpoints/quick",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fmcli {fmcli.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("evaluate", short_help="Score members, each by itself.")(evaluate.evaluate)
app.add_typer(ensemble.app, name="ensemble")
app.command("predict", short_help="Label pictures by one member or a run's vote.")(predict.predict)
app.command("plot", short_help="Draw figures of images, trainings and votes.")(plot.plot)
app.command("reproduce", short_help="Train published systems, compare with their figures.")(reproduce.reproduce)
app.command("search", short_help="Search for better values of a recipe.")(search.search)
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")
