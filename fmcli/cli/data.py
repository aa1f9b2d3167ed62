"""`fmcli data`: fetch and info."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmcli.choices import BUILT_IN_SOURCES, DEFAULT_SOURCE, SOURCE_FORMS
from fmcli.cli import options
from fmcli.cli.command import OUTPUT
from fmcli.cli.data_spec import find_data_spec
from fmcli.cli.plotters import data_plotters, save_figures
from fmcli.errors import DataError, printable

if TYPE_CHECKING:
    from fmcli.data import Splits
    from fmcli.recipe import DataSpec

app = options.command_group("Download, verify and show datasets.")

_MIN_STEPS = 700  # 300 images in three classes: 35 % accuracy after 10 steps, 78 % after 240, 87 % after 720
_SMALL_BATCH = 32
_STRATIFIED_FRACTION = "{ fraction = 0.2, stratify = true }"

BuiltIn = Annotated[
    str,
    typer.Argument(metavar="NAME", help=f"Name of the built-in dataset: {', '.join(BUILT_IN_SOURCES)}."),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help=f"{', '.join(SOURCE_FORMS.values())}, or a recipe, run, checkpoint, ensemble file or pack.",
    ),
]
Grid = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write a grid of samples to this .png, .pdf or .svg file.", rich_help_panel=OUTPUT
    ),
]


@app.command("fetch", short_help="Download and verify a built-in dataset.")
def fetch_data(
    source: BuiltIn = DEFAULT_SOURCE,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    data_root: options.DataRoot = None,
) -> None:
    """Download a built-in dataset and verify it.

    First, fmcli looks in --data-root, the user's cache and the system folder. If the dataset is in none of them, fmcli
    downloads it from its mirrors. If no mirror can be reached, fmcli downloads the Debian package, which needs no root
    rights.

    Example: fmcli data fetch fashion-mnist
    """
    from fmcli.data import fetch_source
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    terminal.write(f"{fetch_source(source, data_root=data_root, log=terminal.note)}\n")


@app.command("info", short_help="Show classes, splits, digests and samples.")
def show_data(
    source: Source = DEFAULT_SOURCE,
    set_: options.DataOverrides = None,
    format_: options.FormatOption = "table",
    samples: Annotated[
        bool, typer.Option(help="Show one sample per class in the terminal.", rich_help_panel=OUTPUT)
    ] = True,
    grid: Grid = None,
    data_root: options.DataRoot = None,
) -> None:
    """Show the number of images per class and split, the image size, the digest of each split, and samples.

    Examples:
        fmcli data info
        fmcli data info folder:pets --set 'data.size=[32,32]' --grid samples.png
    """
    spec = find_data_spec(source)

    from fmcli.data import load_source, split_images
    from fmcli.recipe import resolve_data
    from fmcli.report.console import Terminal
    from fmcli.report.data import data_document
    from fmcli.report.document import emit
    from fmcli.report.thumbnails import terminal_grid

    spec = resolve_data(spec, set_ or ())
    terminal = Terminal()
    found = load_source(spec, data_root=data_root)
    splits = split_images(found, spec)
    if found.validation is not None and splits.validation is not found.validation:
        terminal.note(
            f"not using the {len(found.validation):,} validation images of the source; "
            "to use them, set data.validation = { own = true }"
        )
    if grid is not None:
        save_figures({"samples": data_plotters(spec, splits)["samples"]}, {"samples": grid}, terminal)
        terminal.note(f"wrote {printable(grid)}")
    counts = {name: images.counts().tolist() for name, images in splits.present().items()}
    digests = {name: images.digest for name, images in splits.present().items()}
    train = splits.train
    document = data_document(spec.source, str(found.path), train.input_shape, counts, train.class_names, digests)
    emit(document, format_, terminal)
    if samples and format_ == "table" and terminal.out.is_terminal:
        first = train.first_of_each_class(1)
        terminal.print(terminal_grid(first.images, first.labels, first.class_names, terminal.out))
    if ":" in source and source == spec.source and (command := _train_command(found, spec, set_ or (), data_root)):
        terminal.note(f"Next: {command}")


def _train_command(found: Splits, spec: DataSpec, overrides: Sequence[str], data_root: Path | None) -> str | None:
    """Return a command that trains `quick` on a source for at least `_MIN_STEPS` steps, or None if it cannot.

    Args:
        found: The images.
        spec: The source with the overrides.
        overrides: Changes of the `[data]` table.
        data_root: Folder of datasets.
    """
    from fmcli.data import split_images
    from fmcli.recipe import load_recipe, resolve_data

    path = Path(spec.source.partition(":")[2])
    changes = list(overrides)
    if spec.resplit is not None:
        return None  # quick takes validation images from the training images, so it cannot split again
    if spec.validation is None:
        changes.append("data.validation=" + (_STRATIFIED_FRACTION if found.validation is None else "{ own = true }"))
    try:
        n_images = len(split_images(found, resolve_data(spec, changes)).train)
    except DataError:  # too few images
        return None
    trainer = load_recipe("quick").members[0].trainer
    if trainer.epochs * (n_images // trainer.batch_size) < _MIN_STEPS:
        epochs = max(trainer.epochs, math.ceil(_MIN_STEPS / max(n_images // _SMALL_BATCH, 1)))
        changes += [f"trainer.epochs={epochs}", f"trainer.batch_size={_SMALL_BATCH}"]
    words = [part for change in [f"data.source={spec.source}", *changes] for part in ("--set", change)]
    if data_root is not None and not path.exists():
        words += ["--data-root", str(data_root)]
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return shlex.join(["fmcli", "train", "--recipe", "quick", *words, "--output", str(Path("checkpoints") / name)])
