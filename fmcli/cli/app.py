"""The root command: all commands in the order of `fmcli --help`."""

from typing import Annotated

import typer

import fmcli
from fmcli.cli import data, ensemble, evaluate, plot, predict, recipe, reproduce, search, train
from fmcli.cli.command import Command, Root

app = typer.Typer(
    cls=Root,
    help="Train small-image classifiers and combine them into voting ensembles.",
    epilog="\b\nStart with:\n  fmcli data fetch\n  fmcli train --recipe quick\n"
    "  fmcli ensemble evaluate checkpoints/quick",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"fmcli {fmcli.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command("train", short_help="Train the members of a recipe.")(train.train)
app.command("evaluate", short_help="Score each member on its own.")(evaluate.evaluate)
app.add_typer(ensemble.app, name="ensemble")
app.command("predict", short_help="Classify images.")(predict.predict)
app.command("plot", short_help="Draw figures of images, training and votes.")(plot.plot)
app.command("reproduce", short_help="Train published systems; compare their accuracy.")(reproduce.reproduce)
app.command("search", short_help="Search for better hyperparameters.")(search.search)
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")

for group in (app, ensemble.app, recipe.app, data.app):
    for registered in group.registered_commands:
        registered.cls = Command
