"""`fmcli data …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmcli.cli.data_spec import data_spec
from fmcli.cli.options import DataRoot, FormatOption, Quiet, Verbose, command_group

app = command_group("Get, verify and look at datasets.")


@app.command("fetch", short_help="Get a built-in dataset and verify it.")
def fetch_data(
    source: Annotated[str, typer.Argument(help="Which built-in dataset.")] = "fashion-mnist",
    data_root: DataRoot = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Get a built-in dataset and verify it; nothing is done where it is there already.

    Looks in --data-root, the user's cache and the system's folder; then downloads it from its mirrors, and where
    those cannot be reached takes Debian's package, without root.

    Example: fmcli data fetch fashion-mnist
    """
    from fmcli.data.fetch import fetch
    from fmcli.report.console import Terminal

    terminal = Terminal(quiet=quiet, verbose=verbose)
    terminal.write(f"{fetch(source, data_root=data_root, log=terminal.note)}\n")


@app.command("info", short_help="Show classes, splits, digests and samples.")
def show_data(
    source: Annotated[
        str,
        typer.Argument(
            help="fashion-mnist, folder:DIR, idx:DIR, npz:FILE, a recipe, run, checkpoint, ensemble file or pack."
        ),
    ] = "fashion-mnist",
    grid: Annotated[
        Path | None, typer.Option(help="Save a grid of samples as .png, .pdf or .svg.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a key of its [data] table, e.g. --set 'data.size=[32,32]'; may be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    samples: Annotated[bool, typer.Option(help="Show a sample of each class in the terminal.")] = True,
    data_root: DataRoot = None,
    format_: FormatOption = "table",
) -> None:
    """Show the images of each class and split, their size, digests and samples.

    Example: fmcli data info folder:pets --set 'data.size=[32,32]' --grid samples.png
    """
    spec = data_spec(source)

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
    train = splits.train
    present = splits.present()
    document = data_document(
        spec.source,
        str(found.path),
        train.input_shape,
        {name: images.counts().tolist() for name, images in present.items()},
        train.class_names,
        {name: images.digest for name, images in present.items()},
    )
    if found.validation is not None and splits.validation is not found.validation:
        terminal.note(
            f"the source's own {len(found.validation):,} validation images are left alone: "
            "a recipe takes them by data.validation = { own = true }"
        )
    if grid is not None:
        from fmcli.report.plots import SAMPLES_OF_EACH, sample_figure, save_figure

        name = f"{spec.source}, train"
        few = train.first_of_each_class(SAMPLES_OF_EACH)
        save_figure(sample_figure(few.images, few.labels, few.class_names, source=name), grid)
        terminal.note(f"wrote {grid}")
    emit(document, format_, terminal)
    if samples and format_ == "table" and terminal.out.is_terminal:
        few = train.first_of_each_class(1)
        terminal.print(terminal_grid(few.images, few.labels, few.class_names, terminal.out))
