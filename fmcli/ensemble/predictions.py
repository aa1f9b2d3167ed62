"""Predictions: a member's logits on a split with the true labels, in memory and in files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from fmcli.errors import CheckpointError, printable
from fmcli.storage.atomic import order_metadata, write_atomic
from fmcli.storage.reading import MAX_CLASSES, FileFormat, check_format, open_tensors

FORMAT = FileFormat("fmcli-predictions-2", "a predictions file", remedies=["evaluate-again"])
_TEXT_FIELDS = ("member", "split", "data_digest", "recipe_digest", "group")


@dataclass(frozen=True, slots=True)
class Predictions:
    """A member's predictions for all images of a split.

    Args:
        logits: float32 (n_samples, n_classes).
        labels: True classes, int64 (n_samples,).
        class_names: Names in label order.
        member: Name of the member.
        split: `train`, `validation` or `test`.
        data_digest: SHA-256 of the split's images and labels; empty for predictions from other tools.
        recipe_digest: SHA-256 of the member's recipe; empty for predictions from other tools.
        group: Group in a two-level vote: the kernel sizes of the network; empty if unknown.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    member: str
    split: str
    data_digest: str = ""
    recipe_digest: str = ""
    group: str = ""

    @property
    def choices(self) -> NDArray[np.int64]:
        """Predicted labels, int64 (n_samples,): the highest logit wins; among equal logits, the lowest label."""
        return np.asarray(self.logits.argmax(axis=1))


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """A class and its probability, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """The prediction for an image file, or the error that prevented it.

    Args:
        name: Path of the image file.
        index: Index in an array file; None for other files.
        label: Winning class; None if the image is undecided or has an error.
        probability: Probability of the winning class, in [0, 1]; see `rules.vote.Vote`.
        votes: Number of members that chose the winning class.
        top: The winning class and the next best classes, ordered by score and then by probability.
        undecided: Whether the probability is below the requested minimum.
        error: Why the image cannot be read; `label`, `votes` and so on are then None, empty or False.
    """

    name: str
    index: int | None
    label: str | None = None
    probability: float | None = None
    votes: int | None = None
    top: tuple[ClassProbability, ...] = ()
    undecided: bool = False
    error: str | None = None


# --- files -----------------------------------------------------------------------------------------------


def predictions_file(split: str) -> str:
    """Return the name of the file with the predictions on a split, in a member's folder."""
    return f"{split}.safetensors"


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions to a safetensors file.

    Raises:
        FmcliError: The file cannot be written.
    """
    header = {
        "format": FORMAT.name,
        "classes": json.dumps(predictions.class_names),
        **{name: getattr(predictions, name) for name in _TEXT_FIELDS},
    }
    arrays: dict[str, NDArray[Any]] = {"logits": predictions.logits, "labels": predictions.labels}
    # safetensors copies the memory of an array and ignores its strides.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {**header, "digest": _digest(header, contiguous)}
    write_atomic(path, order_metadata(save(contiguous, metadata=metadata)))


def _digest(header: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of a file's header and arrays."""
    text = json.dumps(dict(header), sort_keys=True)
    return hashlib.sha256(f"{text}{digest_arrays(arrays['logits'], arrays['labels'])}".encode()).hexdigest()


def digest_arrays(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of the shapes, dtypes and bytes of arrays.

    Example:
        >>> digest_arrays(np.zeros(3)) == digest_arrays(np.zeros(4))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load_predictions(path: Path, *, header_only: bool = False) -> Predictions:
    """Read predictions that `save_predictions` wrote.

    Args:
        path: The file.
        header_only: Whether to skip the arrays, which is fast. Logits and labels are then empty, and the digest is not
            checked.

    Raises:
        CheckpointError: The file is missing, damaged or not a predictions file.
    """
    try:
        with open_tensors(path, "np") as file:
            metadata = file.metadata() or {}
            check_format(path, metadata, FORMAT)
            fields = {name: metadata[name] for name in _TEXT_FIELDS}
            class_names = _parse_class_names(metadata["classes"])
            if header_only:
                return Predictions(
                    np.empty((0, len(class_names)), np.float32), np.empty(0, np.int64), class_names, **fields
                )
            arrays = {name: file.get_tensor(name) for name in ("logits", "labels")}
            _check_digest(metadata, arrays, path)
    except KeyError as error:
        raise CheckpointError(f"the header of the predictions {printable(path)} has no {printable(error)}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read predictions {printable(path)}: {printable(error)}") from error
    predictions = Predictions(**arrays, class_names=class_names, **fields)
    _check(predictions, path)
    return predictions


def _parse_class_names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("the header's classes are not a list of names")
    return tuple(names)


def _check_digest(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    header = {name: value for name, value in metadata.items() if name != "digest"}
    if metadata["digest"] != _digest(header, arrays):
        raise CheckpointError(
            f"{printable(path)} is damaged: its content does not match its digest",
            hint="copy the file again",
            remedies=["evaluate-again"],
        )


def _check(predictions: Predictions, path: Path) -> None:
    logits, labels, n_classes = predictions.logits, predictions.labels, len(predictions.class_names)
    found = f"logits {logits.dtype} {logits.shape} and labels {labels.dtype} {labels.shape}"
    expected = f"logits float32 {(labels.size, n_classes)} and labels int64 {(labels.size,)}"
    if found != expected:
        raise CheckpointError(f"{printable(path)} has {found}; expected {expected}")
    if n_classes > MAX_CLASSES:
        raise CheckpointError(f"{printable(path)} has {n_classes} classes; the limit is {MAX_CLASSES}")
    if not labels.size:
        raise CheckpointError(f"{printable(path)} has no predictions", remedies=["evaluate-again"])
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{printable(path)}: logits must be finite; some are NaN or infinite")
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise CheckpointError(
            f"{printable(path)}: labels must be 0 to {n_classes - 1}; got {labels.min()} to {labels.max()}"
        )


# --- several members -------------------------------------------------------------------------------------


def check_same_images(predictions: Sequence[Predictions]) -> None:
    """Check that all members predict the same images and classes.

    Raises:
        CheckpointError: There are no members, or the classes, splits, images or labels of two members differ.
    """
    if not predictions:
        raise CheckpointError("an ensemble needs at least one member")
    first = next((member for member in predictions if member.data_digest), predictions[0])
    for other in predictions:
        names = f"{printable(first.member)} and {printable(other.member)}"
        if other.class_names != first.class_names:
            raise CheckpointError(
                f"{names} have different classes: {_list_classes(first.class_names)} and "
                f"{_list_classes(other.class_names)}",
                hint="combine members that were trained on the same classes",
            )
        if other.split != first.split or (other.data_digest and other.data_digest != first.data_digest):
            raise CheckpointError(
                f"{names} were evaluated on different images ({first.split} {first.data_digest[:12]} and "
                f"{other.split} {other.data_digest[:12]})",
                hint="combine members whose recipes have the same [data] section",
            )
        if not np.array_equal(other.labels, first.labels):
            raise CheckpointError(
                f"{names} have predictions for {len(first.labels):,} and {len(other.labels):,} images"
                + (", with different labels" if len(first.labels) == len(other.labels) else ""),
                hint="combine predictions for the same images, in the same order",
            )


def stack_logits(predictions: Sequence[Predictions]) -> NDArray[np.float32]:
    """Stack members' logits into one array.

    Args:
        predictions: Predictions of at least one member, all on the same images.

    Returns:
        float32 (n_members, n_samples, n_classes).

    Raises:
        CheckpointError: There are no members, or the classes, splits, images or labels of two members differ.
    """
    check_same_images(predictions)
    return np.stack([member.logits for member in predictions])


def _list_classes(names: Sequence[str], max_names: int = 4) -> str:
    """Return the first class names and the number of classes."""
    listed = ", ".join(printable(name) for name in names[:max_names])
    return f"{listed}, … ({len(names)})" if len(names) > max_names else f"{listed} ({len(names)})"


def find_duplicates(predictions: Sequence[Predictions]) -> dict[str, str]:
    """Find members whose logits are bit-identical to an earlier member's logits.

    Args:
        predictions: Members on the same images.

    Returns:
        The name of the earlier member, by the name of the duplicate.
    """
    by_first_row: dict[bytes, list[Predictions]] = {}
    duplicates = {}
    for member in predictions:
        candidates = by_first_row.setdefault(member.logits[:1].tobytes(), [])
        earlier = next((other for other in candidates if np.array_equal(other.logits, member.logits)), None)
        if earlier is None:
            candidates.append(member)
        else:
            duplicates[member.member] = earlier.member
    return duplicates
