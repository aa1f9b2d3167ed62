"""Predictions of other tools: probabilities as CSV or `.npy`, and the labels that they lack."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.predictions import Predictions

SUFFIXES = (".csv", ".npy")
LABEL_COLUMN = "label"
_LARGEST = 8 << 30  # bytes: more than this is a header that lies
_ROUNDING = 1e-3  # by how much probabilities that were written with few digits may miss 1


@dataclass(frozen=True, slots=True, eq=False)
class ForeignPredictions:
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


def read_foreign(path: Path) -> ForeignPredictions:
    """Read another tool's probabilities.

    Args:
        path: A `.npy` of shape (n_samples, n_classes), or a CSV with a column for each class, headed by its name, and
            perhaps one headed `label` with the true class.

    Raises:
        DataError: The file is missing or broken, or holds no probabilities.
    """
    found = _read_csv(path) if path.suffix == ".csv" else ForeignPredictions(path, _read_npy(path))
    values, where = found.probabilities, printable(path)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{where} has shape {values.shape}; expected (n_samples, n_classes)")
    wrong = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{where}: row {int(wrong.argmax())} holds NaN, infinite or negative values",
            hint="give probabilities, as from predict_proba or a softmax",
        )
    sums = values.sum(axis=1)
    if (np.abs(sums - 1) > _ROUNDING).any():
        place = int(np.abs(sums - 1).argmax())
        raise DataError(
            f"{where}: the probabilities of row {place} add up to {sums[place]:.4g}, not 1",
            hint="give probabilities, as from predict_proba or a softmax",
        )
    return ForeignPredictions(path, values / sums[:, None], found.class_names, found.labels)


def _read_npy(path: Path) -> NDArray[np.float64]:
    array = _open_npy(path)
    if not np.issubdtype(array.dtype, np.floating) or array.nbytes > _LARGEST:
        raise DataError(f"{printable(path)} holds {array.dtype} values of shape {array.shape}; expected floats")
    return np.asarray(array, dtype=np.float64)


def _open_npy(path: Path) -> NDArray[Any]:
    """Open an array that stays on the disk until used; never a pickled one, or an archive."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # its header is parsed as Python and fails in as many ways
        raise DataError(f"cannot read {printable(path)}: {printable(error)}", hint="numpy.save writes it") from error


def _read_csv(path: Path) -> ForeignPredictions:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            heading = next(rows, [])
            if len(set(heading)) != len(heading):
                raise DataError(f"{printable(path)} has two columns of one name")
            place = heading.index(LABEL_COLUMN) if LABEL_COLUMN in heading else None
            columns = [column for column in range(len(heading)) if column != place]
            labels, values = [], []
            for row in rows:
                if len(row) != len(heading):
                    raise DataError(f"{printable(path)}, line {rows.line_num}: {len(row)} values, not {len(heading)}")
                values.append([float(row[column]) for column in columns])
                labels += [row[place]] if place is not None else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {printable(path)}: {printable(error)}") from error
    except ValueError as error:
        raise DataError(
            f"{printable(path)}, line {rows.line_num}: {printable(error)}",
            hint=f"each column but {LABEL_COLUMN} holds a class's probabilities, headed by its name",
        ) from error
    names = tuple(heading[column] for column in columns)
    array = np.array(values, dtype=np.float64).reshape(len(values), len(names))
    return ForeignPredictions(path, array, names, tuple(labels) if place is not None else None)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read true classes, by name or number: a `.npy` of whole numbers, or a text with one a line.

    Raises:
        DataError: The file is missing or broken.
    """
    if path.suffix == ".npy":
        array = _open_npy(path)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{printable(path)} holds {array.dtype} values of shape {array.shape}, not labels")
        return tuple(str(label) for label in array.tolist())
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read labels from {printable(path)}: {printable(error)}") from error
    return tuple(line.strip() for line in lines[1 if lines and lines[0].strip() == LABEL_COLUMN else 0 :])


def to_predictions(
    foreign: ForeignPredictions,
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
        DataError: They have no labels, or other classes or images than `like`.
    """
    where, n_classes = printable(foreign.path), foreign.probabilities.shape[1]
    names = foreign.class_names or (like.class_names if like else tuple(str(label) for label in range(n_classes)))
    probabilities = foreign.probabilities
    if like is not None and set(names) == set(like.class_names) and len(names) == n_classes:
        probabilities = probabilities[:, [names.index(one) for one in like.class_names]]
        names = like.class_names
    if len(names) != n_classes:
        raise DataError(
            f"{where} has {n_classes} classes; {printable(like.member) if like else 'its heading'} has {len(names)}"
        )
    given = foreign.labels if foreign.labels is not None else labels
    if given is not None:
        truth = _numbers(given, names, where)
    elif like is not None:
        truth = like.labels
    else:
        raise DataError(
            f"{where} says nothing of the true classes",
            hint="give --labels FILE, a CSV with a column label, or a member of fmcli beside it",
        )
    if len(truth) != len(probabilities):
        raise DataError(f"{where} answers for {len(probabilities):,} images; there are {len(truth):,} labels")
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
    return Predictions(logits=logits, labels=truth, class_names=names, member=name, split=split)


def _numbers(labels: Sequence[str], names: Sequence[str], where: str) -> NDArray[np.int64]:
    number: dict[Any, int] = {str(place): place for place in range(len(names))}
    number |= {name: place for place, name in enumerate(names)}  # a name wins over a number
    for place, label in enumerate(labels):
        if label not in number:
            raise DataError(
                f"{where}: label {printable(label)!r} of image {place} is not among its classes",
                hint=f"by name or number: {', '.join(printable(name) for name in names[:10])}",
            )
    return np.array([number[label] for label in labels], dtype=np.int64)
