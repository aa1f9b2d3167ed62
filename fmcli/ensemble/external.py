"""Predictions of other tools: probabilities as CSV or `.npy`, and the labels that they lack.

True classes come from the CSV's column `label`, else from a file that is named (`--labels`), else from a file beside:
`test-labels.npy` or `test-labels.txt`, and likewise of `validation` and `train`, in the folder of the predictions or,
of predictions in a folder of their own (`forest/test.npy`), in the folder above; else from another member's
predictions of the same images.
"""

import csv
import io
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import SPLITS
from fmcli.ensemble.predictions import Predictions
from fmcli.errors import DataError, printable
from fmcli.storage.reading import MAX_CLASSES, open_array, read_text

SUFFIXES = (".csv", ".npy")
"""How such files end, in small letters or large ones."""
LABEL_COLUMN = "label"
_LABEL_SUFFIXES = (".npy", ".txt")
_LARGEST = 8 << 30  # bytes: more than this is a header that lies
MAX_TABLE_BYTES = 64 << 20  # bytes of a CSV
MAX_LABELS_BYTES = 32 << 20  # bytes
_ROUNDING = 1e-3  # by how much probabilities that were written with few digits may miss 1
_HINT = f"each column but {LABEL_COLUMN} holds a class's probabilities, as from predict_proba or a softmax"


class NoLabelsError(DataError):
    """Nothing says which the true classes of another tool's predictions are."""


@dataclass(frozen=True, slots=True, eq=False)
class ExternalPredictions:
    """What a file of another tool says.

    Args:
        path: The file.
        probabilities: float64 (n_samples, n_classes), each row adding up to 1.
        class_names: From the heading of a CSV; None of a `.npy`.
        labels: The true classes, by name or number, from the CSV's column `label`; None without one.
    """

    path: Path
    probabilities: NDArray[np.float64]
    class_names: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


def is_external(path: Path) -> bool:
    """Return whether a file is another tool's predictions, by how its name ends.

    Example:
        >>> is_external(Path("forest.CSV")), is_external(Path("k3.safetensors"))
        (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def is_labels_file(path: Path) -> bool:
    """Return whether a file is named as the true classes of a split are.

    Example:
        >>> is_labels_file(Path("test-labels.npy")), is_labels_file(Path("forest.npy"))
        (True, False)
    """
    split, dash, rest = path.stem.partition("-")
    return split in SPLITS and f"{dash}{rest}" == "-labels" and path.suffix.lower() in _LABEL_SUFFIXES


def find_labels_file(path: Path, split: str) -> Path | None:
    """Return the file of true classes that lies beside predictions, or above a folder of their own; None without."""
    folders = [path.parent, path.parent.parent] if path.stem in SPLITS else [path.parent]
    places = (folder / f"{split}-labels{suffix}" for folder in folders for suffix in _LABEL_SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def read_external(path: Path) -> ExternalPredictions:
    """Read another tool's probabilities.

    Args:
        path: A `.npy` of shape (n_samples, n_classes), or a CSV with a column for each class, headed by its name, and
            perhaps one headed `label` with the true class.

    Raises:
        DataError: The file is missing or broken, or holds no probabilities.
    """
    found = _read_csv(path) if path.suffix.lower() == ".csv" else ExternalPredictions(path, _read_npy(path))
    values, where = found.probabilities, printable(path)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{where} has shape {values.shape}; expected (n_samples, n_classes)")
    if values.shape[1] > MAX_CLASSES:
        raise DataError(f"{where} has {values.shape[1]} classes; the limit is {MAX_CLASSES}", hint=_HINT)
    wrong = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{where}: row {int(wrong.argmax())} holds NaN, infinite or negative values",
            hint=_HINT,
        )
    sums = values.sum(axis=1)
    if (np.abs(sums - 1) > _ROUNDING).any():
        place = int(np.abs(sums - 1).argmax())
        raise DataError(
            f"{where}: the probabilities of row {place} add up to {sums[place]:.4g}, not 1",
            hint=_HINT,
        )
    return ExternalPredictions(path, values / sums[:, None], found.class_names, found.labels)


def _read_npy(path: Path) -> NDArray[np.float64]:
    array = _open_npy(path)
    if not np.issubdtype(array.dtype, np.floating) or array.nbytes > _LARGEST:
        raise DataError(f"{printable(path)} holds {array.dtype} values of shape {array.shape}; expected floats")
    return np.asarray(array, dtype=np.float64)


def _open_npy(path: Path) -> NDArray[Any]:
    """Open an array that stays on the disk until used; never a pickled one, or an archive."""
    try:
        return open_array(path)
    except Exception as error:  # its header is parsed as Python and fails in as many ways
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read {printable(path)}: {printable(reason)}", hint="numpy.save writes it") from error


def _read_csv(path: Path) -> ExternalPredictions:
    text = read_text(path, MAX_TABLE_BYTES, DataError)
    rows = csv.reader(io.StringIO(text, newline=""))
    filled = (row for row in rows if "".join(row).strip() or len(row) > 1)
    labels: list[str] = []
    values = array("d")  # a list would take four times as much
    try:
        heading = next(filled, [])
        _check_heading(path, heading)
        place = heading.index(LABEL_COLUMN) if LABEL_COLUMN in heading else None
        columns = [column for column in range(len(heading)) if column != place]
        for row in filled:
            if len(row) != len(heading):
                raise DataError(f"{printable(path)}, line {rows.line_num}: {len(row)} values, not {len(heading)}")
            values.extend(float(row[column]) for column in columns)
            labels += [row[place]] if place is not None else []
    except csv.Error as error:
        raise DataError(f"cannot read {printable(path)}: {printable(error)}") from error
    except ValueError as error:
        raise DataError(
            f"{printable(path)}, line {rows.line_num}: {printable(error)}",
            hint=_HINT,
        ) from error
    names = tuple(heading[column] for column in columns)
    table = np.array(values, dtype=np.float64).reshape(-1, len(names)) if names else np.empty((0, 0))
    return ExternalPredictions(path, table, names, tuple(labels) if place is not None else None)


def _check_heading(path: Path, heading: Sequence[str]) -> None:
    where = printable(path)
    other = next((mark for mark in ";\t|" if len(heading) == 1 and mark in heading[0]), None)
    if other is not None:
        raise DataError(f"{where} has {other!r} between its columns", hint="a CSV has commas, and points in numbers")
    if "" in heading:
        raise DataError(
            f"{where}: column {heading.index('') + 1} has no name",
            hint="head each column by its class; pandas leaves its row numbers out with index=False",
        )
    if _are_probabilities(heading):
        raise DataError(
            f"{where} has no heading: its first line is probabilities",
            hint="head each column by its class; a class that is called 0.0 may be called 0",
        )
    if len(set(heading)) != len(heading):
        raise DataError(f"{where} has two columns of one name")


def _are_probabilities(names: Sequence[str]) -> bool:
    """Return whether columns' names are the probabilities of a sample, rather than the numbers of classes.

    Example:
        >>> [_are_probabilities(names) for names in (["0", "0.25", "0.75"], ["0", "1"], ["0.0", "1.0", "2.0"])]
        [True, False, False]
    """
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    fractions = any(not name.isdecimal() for name in names)
    return fractions and all(0 <= value <= 1 for value in values) and abs(sum(values) - 1) <= _ROUNDING


def read_labels(path: Path) -> tuple[str, ...]:
    """Read true classes, by name or number: a `.npy` of whole numbers, or a text with one a line.

    Raises:
        DataError: The file is missing or broken.
    """
    if path.suffix.lower() == ".npy":
        array = _open_npy(path)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{printable(path)} holds {array.dtype} values of shape {array.shape}, not labels")
        if array.nbytes > MAX_LABELS_BYTES:
            raise DataError(f"{printable(path)} holds {array.nbytes} bytes of labels; the limit is {MAX_LABELS_BYTES}")
        return tuple(str(label) for label in array.tolist())
    labels = [line.strip() for line in read_text(path, MAX_LABELS_BYTES, DataError).splitlines()]
    while labels and not labels[-1]:
        labels.pop()
    return tuple(labels[1 if labels[:1] == [LABEL_COLUMN] else 0 :])


def to_predictions(
    foreign: ExternalPredictions,
    *,
    name: str,
    split: str,
    like: Predictions | None = None,
    labels: Sequence[str] | None = None,
) -> Predictions:
    """Give another tool's probabilities the labels and class names that they need.

    Args:
        foreign: What was read.
        name: What to call the member.
        split: Which images they are of.
        like: Predictions of fmcli of the same images, whose classes and labels they take over where they have none.
        labels: The true classes, by name or number.

    Raises:
        NoLabelsError: They have no labels.
        DataError: They have other classes or images than `like`, or labels that are none of their classes.
    """
    where, n_classes = printable(foreign.path), foreign.probabilities.shape[1]
    names = foreign.class_names or (like.class_names if like else tuple(str(label) for label in range(n_classes)))
    probabilities = foreign.probabilities
    if like is not None and len(like.class_names) != n_classes and foreign.class_names is None and labels is not None:
        names, like = tuple(str(label) for label in range(n_classes)), None  # of something else, evaluated by itself
    if like is not None and set(names) == set(like.class_names) and len(names) == n_classes:
        probabilities = probabilities[:, [names.index(one) for one in like.class_names]]
        names = like.class_names
    if len(names) != n_classes:
        raise DataError(
            f"{where} has {n_classes} classes; {printable(like.member) if like else 'its heading'} has {len(names)}"
        )
    given = foreign.labels if foreign.labels is not None else labels
    if given is not None:
        named = foreign.class_names is not None or like is not None
        truth = _numbers(given, names, where, named=named)
    elif like is not None:
        truth = like.labels
    else:
        raise NoLabelsError(
            f"{where} says nothing of the true classes",
            hint=f"give --labels FILE, {split}-labels.npy beside it, a CSV with a column {LABEL_COLUMN}, or a member "
            "of fmcli beside it",
        )
    if len(truth) != len(probabilities):
        raise DataError(f"{where} answers for {len(probabilities):,} images; there are {len(truth):,} labels")
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
    return Predictions(logits=logits, labels=truth, class_names=names, member=name, split=split)


def _numbers(labels: Sequence[str], names: Sequence[str], where: str, *, named: bool) -> NDArray[np.int64]:
    number: dict[Any, int] = {str(place): place for place in range(len(names))}
    number |= {name: place for place, name in enumerate(names)}  # a name wins over a number
    for place, label in enumerate(labels):
        if label not in number and not named:
            raise DataError(
                f"{where}: label {printable(label)!r} of image {place} is no number from 0 to {len(names) - 1}, and "
                "a .npy has no class names",
                hint="give labels by number, or beside it a CSV or a member of fmcli, which knows the names",
            )
        if label not in number:
            raise DataError(
                f"{where}: label {printable(label)!r} of image {place} is not among its classes",
                hint=f"by name or number: {', '.join(printable(name) for name in names[:10])}",
            )
    return np.array([number[label] for label in labels], dtype=np.int64)
