"""Predictions from other tools: class probabilities in CSV or `.npy` files, and the true classes of the images.

The true classes come from the first of these sources that exists:

1. the column `label` of the CSV file
2. the labels file that the user gives
3. `test-labels.npy` or `test-labels.txt` in the same folder (for other splits, `validation-labels` or `train-labels`).
   If the predictions file is named after its split, such as `forest/test.npy`, also in the parent folder.
4. another member's predictions for the same images
"""

import csv
import io
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import SPLITS
from fmcli.ensemble.predictions import Predictions
from fmcli.errors import DataError, printable
from fmcli.storage.reading import MAX_CLASSES, open_array, open_nonblocking, read_text

SUFFIXES = (".csv", ".npy")
"""Suffixes of predictions files, in lower case."""
LABEL_COLUMN = "label"
_LABEL_SUFFIXES = (".npy", ".txt")
_MAX_ARRAY_BYTES = 8 << 30
MAX_TABLE_BYTES = 64 << 20
_MAX_HEADER_BYTES = 1 << 20
MAX_LABELS_BYTES = 32 << 20
_SUM_TOLERANCE = 1e-3  # probabilities written with few digits do not sum to exactly 1
_PROBABILITIES_HINT = (
    f"each column except {LABEL_COLUMN} must have the probabilities of one class, as from predict_proba or a softmax"
)
_HEADER_HINT = "the first line must have the class names"


class NoLabelsError(DataError):
    """The true classes are unknown for predictions from another tool."""


@dataclass(frozen=True, slots=True, eq=False)
class ExternalPredictions:
    """The content of a predictions file from another tool.

    Args:
        path: The file.
        probabilities: float64 (n_samples, n_classes); each row sums to 1.
        class_names: Column names of a CSV file; None for a `.npy` file.
        labels: True classes by name or number, from the column `label` of a CSV file; None if there is no such column.
    """

    path: Path
    probabilities: NDArray[np.float64]
    class_names: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None


def is_external(path: Path) -> bool:
    """Return whether a file has the suffix of predictions from another tool.

    Example:
        >>> is_external(Path("forest.CSV")), is_external(Path("k3.safetensors"))
        (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def is_labels_file(path: Path) -> bool:
    """Return whether a file is named like the true classes of a split.

    Example:
        >>> is_labels_file(Path("test-labels.npy")), is_labels_file(Path("forest.npy"))
        (True, False)
    """
    return path.stem in {f"{split}-labels" for split in SPLITS} and path.suffix.lower() in _LABEL_SUFFIXES


def find_labels_file(path: Path, split: str) -> Path | None:
    """Return the labels file next to a predictions file or in the parent folder (source 3 above); None if missing."""
    folders = [path.parent, path.parent.parent] if path.stem in SPLITS else [path.parent]
    files = (folder / f"{split}-labels{suffix}" for folder in folders for suffix in _LABEL_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def count_missing(path: Path, labels: Path | None) -> int:
    """Return how much predictions from another tool take from other members: at least the order of the classes, 1.

    Args:
        path: The predictions file. Only the first line of a CSV file is read.
        labels: File of the true classes, if there is one.

    Returns:
        1, plus 1 without class names, plus 2 without true classes.
    """
    is_table = path.suffix.lower() == ".csv"
    has_labels = labels is not None or (is_table and LABEL_COLUMN in _read_header(path))
    return 1 + (not is_table) + 2 * (not has_labels)


def _read_header(path: Path) -> list[str]:
    """Return the first row of a CSV file; empty if it is damaged, which `read_external` reports."""
    with suppress(OSError, ValueError, csv.Error), open_nonblocking(path) as file:
        start = file.read(_MAX_HEADER_BYTES).decode("utf-8-sig", errors="replace")
        return next(_without_blank_lines(csv.reader(io.StringIO(start, newline=""))), [])
    return []


def read_external(path: Path) -> ExternalPredictions:
    """Read probabilities from another tool.

    Args:
        path: A `.npy` file of shape (n_samples, n_classes), or a CSV file with one column per class. The first line of
            a CSV file has the class names. It can have a column `label` with the true classes.

    Raises:
        DataError: The file is missing or damaged, or does not contain probabilities.
    """
    found = _read_csv(path) if path.suffix.lower() == ".csv" else ExternalPredictions(path, _read_npy(path))
    values, file = found.probabilities, printable(path)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"{file} has shape {values.shape}; expected (n_samples, n_classes)", hint=_PROBABILITIES_HINT)
    if values.shape[1] > MAX_CLASSES:
        raise DataError(f"{file} has {values.shape[1]} classes; the limit is {MAX_CLASSES}", hint=_PROBABILITIES_HINT)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = values.sum(axis=1)
    valid = (np.abs(sums - 1) <= _SUM_TOLERANCE) & (values >= 0).all(axis=1)  # false for NaN
    if not valid.all():
        row = int(valid.argmin())
        raise DataError(
            f"{file}: the values in row {row} (counted from 0) are not probabilities: their minimum is "
            f"{values[row].min():.4g} and their sum is {sums[row]:.4g}; the minimum must be at least 0 and the sum 1",
            hint=_PROBABILITIES_HINT,
        )
    return ExternalPredictions(path, values / sums[:, None], found.class_names, found.labels)


def _read_npy(path: Path) -> NDArray[np.float64]:
    values = _open_npy(path)
    if not np.issubdtype(values.dtype, np.floating) or values.nbytes > _MAX_ARRAY_BYTES:
        raise DataError(
            f"{printable(path)} has dtype {values.dtype} and {values.nbytes:,} bytes; "
            f"expected a float dtype and at most {_MAX_ARRAY_BYTES:,} bytes",
            hint=_PROBABILITIES_HINT,
        )
    return np.asarray(values, dtype=np.float64)


def _open_npy(path: Path) -> NDArray[Any]:
    """Map a `.npy` file into memory; refuse pickled arrays and archives."""
    try:
        return open_array(path)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        reason = str(error) or type(error).__name__
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}",
            hint="write one array of numbers with numpy.save",
        ) from error


def _read_csv(path: Path) -> ExternalPredictions:
    file = printable(path)
    reader = csv.reader(io.StringIO(read_text(path, MAX_TABLE_BYTES, DataError), newline=""))
    rows = _without_blank_lines(reader)
    labels: list[str] = []
    values = array("d")  # uses a quarter of a list's memory
    try:
        header = next(rows, [])
        _check_header(file, header)
        label_column = header.index(LABEL_COLUMN) if LABEL_COLUMN in header else None
        columns = [column for column in range(len(header)) if column != label_column]
        for row in rows:
            if len(row) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: the number of values must be {len(header)}, as in the header; "
                    f"got {len(row)}"
                )
            values.extend(float(row[column]) for column in columns)
            labels += [row[label_column]] if label_column is not None else []
    except csv.Error as error:
        raise DataError(f"cannot read {file}: {printable(error)}") from error
    except ValueError as error:
        raise DataError(f"{file}, line {reader.line_num}: {printable(error)}", hint=_PROBABILITIES_HINT) from error
    names = tuple(header[column] for column in columns)
    table = np.array(values, dtype=np.float64).reshape(-1, len(names)) if names else np.empty((0, 0))
    return ExternalPredictions(path, table, names, tuple(labels) if label_column is not None else None)


def _without_blank_lines(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    return (row for row in rows if "".join(row).strip() or len(row) > 1)


def _check_header(file: str, header: Sequence[str]) -> None:
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        raise DataError(
            f"{file} separates columns by {separator!r}; expected commas",
            hint="separate columns by commas, and write numbers with a decimal point, such as 0.25,0.75",
        )
    if "" in header:
        raise DataError(
            f"{file}: column {header.index('') + 1} has no name",
            hint=f"{_HEADER_HINT}; in pandas, to_csv(index=False) omits the row numbers",
        )
    if _are_probabilities(header):
        raise DataError(
            f"{file} has no header: its first line has probabilities",
            hint=f"{_HEADER_HINT}; write the name of a numbered class as 0, not 0.0",
        )
    name, count = Counter(header).most_common(1)[0] if header else ("", 1)
    if count > 1:
        raise DataError(f"{file} has {count} columns named {printable(name)!r}", hint=_HEADER_HINT)


def _are_probabilities(names: Sequence[str]) -> bool:
    """Return whether the first line of a file has the probabilities of a sample, not the names of the classes.

    Example:
        >>> [_are_probabilities(names) for names in (["0", "0.25", "0.75"], ["0", "1"], ["0.0", "1.0", "2.0"])]
        [True, False, False]
    """
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    has_fractions = any(not name.isdecimal() for name in names)
    return has_fractions and all(0 <= value <= 1 for value in values) and abs(sum(values) - 1) <= _SUM_TOLERANCE


def read_labels(path: Path) -> tuple[str, ...]:
    """Read true classes by name or number, from a `.npy` file of integers or a text file with one class per line.

    Raises:
        DataError: The file is missing or damaged.
    """
    if path.suffix.lower() == ".npy":
        values = _open_npy(path)
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or values.nbytes > MAX_LABELS_BYTES:
            raise DataError(
                f"{printable(path)} has dtype {values.dtype}, shape {values.shape} and {values.nbytes:,} bytes; "
                f"labels must be integers of shape (n_samples,) and at most {MAX_LABELS_BYTES:,} bytes"
            )
        return tuple(str(label) for label in values.tolist())
    labels = [line.strip() for line in read_text(path, MAX_LABELS_BYTES, DataError).splitlines()]
    while labels and not labels[-1]:
        labels.pop()
    return tuple(labels[1 if labels[:1] == [LABEL_COLUMN] else 0 :])


def to_predictions(
    external: ExternalPredictions,
    *,
    name: str,
    split: str,
    reference: Predictions | None = None,
    labels: Sequence[str] | None = None,
) -> Predictions:
    """Add class names and labels to probabilities from another tool, and convert them to logits.

    Args:
        external: The content of the file.
        name: Name of the member.
        split: Split of the images.
        reference: Another member's predictions for the same images. It provides class names and labels if the file has
            none.
        labels: True classes by name or number, from a labels file.

    Raises:
        NoLabelsError: The true classes are unknown.
        DataError: The reference has a different number of classes or images, or a label is not a class.
    """
    file, n_classes = printable(external.path), external.probabilities.shape[1]
    if reference is not None and external.class_names is None and len(reference.class_names) != n_classes:
        if labels is None:
            raise DataError(
                f"{file} has {n_classes} classes, but {printable(reference.member)} has {len(reference.class_names)}; "
                "all members need the same classes"
            )
        reference = None  # the number of classes differs, so the file can only be evaluated alone
    class_names = external.class_names or (reference.class_names if reference else tuple(map(str, range(n_classes))))
    probabilities = external.probabilities
    if reference is not None and set(class_names) == set(reference.class_names):
        probabilities = probabilities[:, [class_names.index(class_name) for class_name in reference.class_names]]
        class_names = reference.class_names
    labels = labels if external.labels is None else external.labels
    if labels is not None:
        y_true = _label_indices(labels, class_names, file)
    elif reference is not None:
        y_true = reference.labels
    else:
        raise NoLabelsError(
            f"the true classes of {file} are unknown",
            hint=f"add {split}-labels.npy to the folder of this file, add a column {LABEL_COLUMN} to a CSV file, or "
            "combine this file with a member trained by fmcli",
            remedies=["labels"],
        )
    if len(y_true) != len(probabilities):
        raise DataError(
            f"{file} has predictions for {len(probabilities):,} images, but there are {len(y_true):,} labels"
        )
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float32)
    return Predictions(logits=logits, labels=y_true, class_names=class_names, member=name, split=split)


def _label_indices(labels: Sequence[str], names: Sequence[str], file: str) -> NDArray[np.int64]:
    indices: dict[Any, int] = {str(index): index for index in range(len(names))}
    indices |= {name: index for index, name in enumerate(names)}  # names take precedence over numbers
    for image, label in enumerate(labels):
        if label not in indices:
            raise DataError(
                f"{file}: label {printable(label)!r} of image {image} (counted from 0) is not one of its classes",
                hint=f"write a number from 0 to {len(names) - 1} or a class name: "
                f"{', '.join(map(printable, names[:10]))}; "
                "a .npy file only has class names if it is combined with a CSV file or a member trained by fmcli",
            )
    return np.array([indices[label] for label in labels], dtype=np.int64)
