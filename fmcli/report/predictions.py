"""The result of `fmcli predict`, written image by image."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice, zip_longest
from typing import Any

from fmcli.choices import Format
from fmcli.ensemble.predictions import ImagePrediction
from fmcli.report.console import Terminal
from fmcli.report.document import Record, write_records, write_sheets
from fmcli.report.sheet import Row, Sheet

_MAX_TABLE_ROWS = 1000  # longer results are printed as several tables, which bounds memory


def write_predictions(
    images: Iterable[ImagePrediction], format_: Format, terminal: Terminal, *, top: int
) -> tuple[int, int]:
    """Write the label of each image, or its error, as soon as it is known.

    Args:
        images: The predictions.
        format_: Output format.
        terminal: Terminal to write to.
        top: Number of most probable classes to list for each image.

    Returns:
        The number of images that were classified, and the number of images that could not be read.

    Raises:
        OutputClosed: The program that reads standard output has closed it.
    """
    counts: Counter[bool] = Counter()

    def counted() -> Iterator[ImagePrediction]:
        for image in images:
            counts[image.error is None] += 1
            yield image

    if format_ in ("table", "markdown", "latex"):
        rows = (_row(image, top) for image in counted())
        pages = iter(lambda: list(islice(rows, _MAX_TABLE_ROWS)), [])
        write_sheets((Sheet(rows=page) for page in pages), format_, terminal)
    else:
        records = (_record(image, top, flat=format_ == "csv") for image in counted())
        if format_ == "json":
            _write_array(records, terminal)
        else:
            write_records(records, format_, terminal)
    return counts[True], counts[False]


def _write_array(records: Iterable[Record], terminal: Terminal) -> None:
    """Write a JSON array with one element per line."""
    before, end = "[\n", "[]\n"
    for record in records:
        terminal.write(before + terminal.to_json(record))
        before, end = ",\n", "\n]\n"
    terminal.write(end)


def _row(image: ImagePrediction, top: int) -> Row:
    others = ", ".join(f"{one.label} {one.probability:.4f}" for one in image.top[1:])
    label = "undecided" if image.undecided else image.label
    return {
        "Input": image.name if image.index is None else f"{image.name}[{image.index}]",
        "Label": label if image.error is None else f"error: {image.error}",
        ">Probability": None if image.probability is None else f"{image.probability:.4f}",
        ">Votes": image.votes,
        **({"Other classes": others} if top > 1 else {}),
    }


def _record(image: ImagePrediction, top: int, *, flat: bool) -> Record:
    """Return the record of an image. Flat records have no lists and the same keys for every image."""
    source = {"input": image.name, "index": image.index}
    if image.error is not None and not flat:
        return {**source, "error": image.error}
    record: dict[str, Any] = {
        **source,
        "label": image.label,
        "probability": image.probability,
        "votes": image.votes,
        "undecided": image.undecided,
    }
    if flat:
        for rank, one in zip_longest(range(2, top + 1), image.top[1:]):
            record |= {f"label_{rank}": one and one.label, f"probability_{rank}": one and one.probability}
        record["error"] = image.error
    elif top > 1:
        record["top"] = [asdict(one) for one in image.top]
    return record
