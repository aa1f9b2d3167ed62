"""`fmcli predict`."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, cast

import typer

from fmcli.choices import Invert
from fmcli.cli import options
from fmcli.cli.command import INPUT, MACHINE, OUTPUT, VOTING
from fmcli.cli.member_pool import choose_rule, open_members
from fmcli.errors import DataError, UsageError

MAX_PATH_BYTES = 1 << 16  # operating systems allow a few thousand
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A run, member, checkpoint, ensemble file or pack.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT", help="Image files, folders, .npy or IDX files. - reads paths from standard input."),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null", "-0", help="Paths on standard input end in NUL, as find -print0 writes them.", rich_help_panel=INPUT
    ),
]
Top = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Number of most probable classes to print per image.", rich_help_panel=OUTPUT
    ),
]
InvertOption = Annotated[
    Invert,
    typer.Option(
        help="Invert dark and light. auto inverts an image if nearly all training images have the opposite background.",
        rich_help_panel=INPUT,
    ),
]
RejectBelow = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        help="Report an image as undecided if the probability of its predicted class is below P.",
        rich_help_panel=VOTING,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Images per batch. With 1, each image is classified as soon as its path arrives.",
        rich_help_panel=MACHINE,
    ),
]


def predict(
    model: Model,
    inputs: Inputs = None,
    invert: InvertOption = "auto",
    tta: options.TestTimeViews = "none",
    null: Null = False,
    vote: options.Vote = None,
    reject_below: RejectBelow = 0.0,
    tie: options.Tie = None,
    format_: options.FormatOption = "table",
    top: Top = 1,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    batch_size: BatchSize = 64,
) -> None:
    """Classify images with one member or with the vote of a run. Results are in the order of the inputs.

    Examples:
        fmcli predict checkpoints/quick photo.jpg --top 3
        fmcli predict checkpoints/quick photos/ --format jsonl | jq -r .label
        find photos -name '*.png' -print0 | fmcli predict checkpoints/quick -0
    """
    names = _input_names(inputs or [], null)

    from fmcli.members.inference import image_reader, label_images
    from fmcli.members.vote import fit_rule
    from fmcli.report.console import Terminal
    from fmcli.report.predictions import write_predictions

    terminal = Terminal(quiet=quiet, verbose=verbose)
    pool = open_members([model], device, terminal)
    members = pool.require_networks()
    combiner = fit_rule(pool, choose_rule(pool, terminal, vote=vote, tie=tie), calibrate=False)
    images = image_reader(members[0].training, invert).read(names)
    labelled = label_images(
        members, images, combiner, top=top, batch_size=batch_size, reject_below=reject_below, views=tta
    )
    n_classified, n_errors = write_predictions(labelled, format_, terminal, top=top)
    if n_errors:
        raise DataError(
            f"{n_errors} of {n_classified + n_errors} images could not be read",
            hint="the output gives the reason for each image",
        )


def _input_names(inputs: list[str], null: bool) -> Iterable[str]:
    """Return the given paths, or the paths on standard input if the only input is `-` or `--null` is given."""
    if inputs == ["-"] or (null and not inputs):
        return _names_from_stdin(b"\0" if null else b"\n")
    if not inputs:
        raise UsageError(
            "no images to classify", hint="give image files, folders or arrays, or - to read paths from standard input"
        )
    if "-" in inputs:
        raise UsageError(
            "- cannot be combined with other inputs", hint="give paths on the command line or on standard input"
        )
    if null:
        raise UsageError(
            "--null is only for paths on standard input, but there are paths on the command line",
            hint="omit --null, or give - instead of paths",
        )
    return inputs


def _names_from_stdin(separator: bytes, chunk: int = 1 << 16) -> Iterator[str]:
    """Yield paths from standard input as they arrive. They need not be valid UTF-8."""
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="give image files, folders or arrays on the command line")
    stream = cast(io.BufferedReader, sys.stdin.buffer)
    rest = b""
    while block := stream.read1(chunk):
        *names, rest = (rest + block).split(separator)
        if os.name == "nt" and separator == b"\n":
            names = [name.removesuffix(b"\r") for name in names]
        yield from (name.decode(errors="surrogateescape") for name in names if name)
        if len(rest) > MAX_PATH_BYTES:
            raise UsageError(
                f"a path on standard input is longer than {MAX_PATH_BYTES} bytes",
                hint="write one path per line, or end each path in NUL and add -0",
            )
    if rest:
        yield rest.decode(errors="surrogateescape")
