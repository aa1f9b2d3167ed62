"""Predictions: the logits of a member on a split with labels and provenance, and their files; labels of pictures."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from fmcli.errors import CheckpointError, printable
from fmcli.storage.atomic import order_metadata, write_atomic
from fmcli.storage.reading import MAX_CLASSES, check_format, open_tensors

FORMAT = "fmcli-predictions-2"


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a member says of every image of a split.

    Args:
        logits: float32 (n_samples, n_classes).
        labels: int64 (n_samples,), the true classes.
        class_names: In label order.
        member: Who predicted.
        split: `train`, `validation` or `test`.
        data_digest: SHA-256 of the split's images and labels; empty where it is not known, as of another tool's.
        recipe_digest: SHA-256 of the recipe that the member was trained by; empty likewise.
        group: What members have in common that vote together in a two-level vote: the kernel sizes of the network.
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
        """int64 (n_samples,): the likeliest class of each image, the lowest label where several are."""
        return np.asarray(self.logits.argmax(axis=1))


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """A class and how likely it is, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """A picture's label, or why there is none.

    Args:
        name: The picture's path.
        index: Its place in an array file, else None.
        label: The class that won; None where that is not sure enough.
        probability: Of that class, in [0, 1]; see `rules.Vote`.
        votes: How many members chose it.
        top: The winner, then the likeliest others: by votes where votes decide, and by probability.
        undecided: The class that won is less likely than was asked for.
        error: What was wrong with the picture; then all else is None or empty.
    """

    name: str
    index: int | None
    label: str | None = None
    probability: float | None = None
    votes: int | None = None
    top: tuple[ClassProbability, ...] = ()
    undecided: bool = False
    error: str | None = None


def predictions_file(split: str) -> str:
    """Return the name, in a member's folder, of the file of its predictions on a split."""
    return f"{split}.safetensors"


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as one safetensors file.

    Raises:
        FmcliError: The file cannot be written.
    """
    header = {
        "format": FORMAT,
        "classes": json.dumps(predictions.class_names),
        "member": predictions.member,
        "split": predictions.split,
        "data_digest": predictions.data_digest,
        "recipe_digest": predictions.recipe_digest,
        "group": predictions.group,
    }
    arrays: dict[str, NDArray[Any]] = {"logits": predictions.logits, "labels": predictions.labels}
    # safetensors copies memory as it lies, whatever the strides.
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, order_metadata(save(dense, metadata={**header, "digest": _digest(header, dense)})))


def _digest(header: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of a file's text and numbers."""
    text = json.dumps(dict(header), sort_keys=True)
    return hashlib.sha256(f"{text}{digest_arrays(arrays['logits'], arrays['labels'])}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PredictionsHeader:
    """What a predictions file says of itself; see `Predictions`."""

    class_names: tuple[str, ...]
    member: str
    split: str
    data_digest: str
    recipe_digest: str
    group: str


def read_predictions_header(path: Path) -> PredictionsHeader:
    """Read what a predictions file says of itself, without its numbers.

    Raises:
        CheckpointError: It is not there, not whole or not such a file.
    """
    return _read(path, with_arrays=False)[0]


def load_predictions(path: Path) -> Predictions:
    """Read a file of `save_predictions`.

    Raises:
        CheckpointError: It is not there, not whole or not such a file.
    """
    header, arrays = _read(path, with_arrays=True)
    predictions = Predictions(arrays["logits"], arrays["labels"], **asdict(header))
    _check(predictions, path)
    return predictions


def _read(path: Path, *, with_arrays: bool) -> tuple[PredictionsHeader, dict[str, NDArray[Any]]]:
    try:
        with open_tensors(path, "np") as file:
            header = file.metadata() or {}
            found = _parse_header(header, path)
            arrays = {name: file.get_tensor(name) for name in ("logits", "labels")} if with_arrays else {}
            return found, _verified(header, arrays, path)
    except KeyError as error:
        raise CheckpointError(f"the header of predictions {printable(path)} lacks {printable(error)}") from error
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read predictions {printable(path)}: {printable(error)}") from error


def _parse_header(header: Mapping[str, str], path: Path) -> PredictionsHeader:
    """Return what the text of a file says; KeyError and ValueError where it does not."""
    check_format(path, header, FORMAT, kind="a predictions file", remedies=["evaluate-again"])
    names = json.loads(header["classes"])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("its classes are no list of names")
    return PredictionsHeader(
        class_names=tuple(names),
        member=header["member"],
        split=header["split"],
        data_digest=header["data_digest"],
        recipe_digest=header["recipe_digest"],
        group=header["group"],
    )


def _verified(header: Mapping[str, str], arrays: dict[str, NDArray[Any]], path: Path) -> dict[str, NDArray[Any]]:
    text = {name: value for name, value in header.items() if name != "digest"}
    if arrays and header["digest"] != _digest(text, arrays):
        raise CheckpointError(
            f"{printable(path)} is damaged: its content does not match its digest",
            hint="copy it again, or save it again",
        )
    return arrays


def _check(predictions: Predictions, path: Path) -> None:
    logits, labels, n_classes = predictions.logits, predictions.labels, len(predictions.class_names)
    if labels.ndim != 1 or logits.shape != (len(labels), n_classes):
        raise CheckpointError(
            f"{printable(path)}: logits of shape {logits.shape} do not fit "
            f"labels of shape {labels.shape} and {n_classes} classes"
        )
    if n_classes > MAX_CLASSES:
        raise CheckpointError(f"{printable(path)} has {n_classes} classes; the limit is {MAX_CLASSES}")
    if not labels.size:
        raise CheckpointError(f"{printable(path)} holds predictions of no images", hint="save them again")
    if logits.dtype != np.float32 or labels.dtype != np.int64:
        raise CheckpointError(
            f"{printable(path)}: logits must be float32 and labels int64, not {logits.dtype} and {labels.dtype}"
        )
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{printable(path)}: its logits must be finite, and some are NaN or infinite")
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise CheckpointError(f"{printable(path)}: its labels go beyond its {n_classes} classes")


def check_same_images(predictions: Sequence[Predictions]) -> None:
    """Refuse predictions that are not of the same images.

    Raises:
        CheckpointError: There are none, or one has other classes, another split or other images than the first, by
            name.
    """
    if not predictions:
        raise CheckpointError("an ensemble needs one member or more")
    first = next((member for member in predictions if member.data_digest), predictions[0])
    for other in predictions:
        if other.class_names != first.class_names:
            raise CheckpointError(
                f"{printable(other.member)} knows the classes {_listing(other.class_names)}; "
                f"{printable(first.member)} knows {_listing(first.class_names)}",
                hint="combine members that were trained on the same classes",
            )
        if other.split != first.split or (other.data_digest and other.data_digest != first.data_digest):
            raise CheckpointError(
                f"{printable(other.member)} was evaluated on other images than {printable(first.member)} "
                f"({other.split} {other.data_digest[:12]}, {first.split} {first.data_digest[:12]})",
                hint="combine members whose recipes split the same data in the same way",
            )
        if not np.array_equal(other.labels, first.labels):
            raise CheckpointError(
                f"{printable(other.member)} answers for {len(other.labels):,} images and {printable(first.member)} "
                f"for {len(first.labels):,}, or for images of other classes",
                hint="combine predictions of the same images, in the same order",
            )


def stack_logits(predictions: Sequence[Predictions]) -> NDArray[np.float32]:
    """Return members' logits as one array, refusing what does not match.

    Args:
        predictions: One or more members on the same images.

    Returns:
        float32 (n_members, n_samples, n_classes).

    Raises:
        CheckpointError: There are none, or one has other classes, another split or other images than the first, by
            name.
    """
    check_same_images(predictions)
    return np.stack([member.logits for member in predictions])


def _listing(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(printable(name) for name in names[:most])
    return f"{shown}, … ({len(names)})" if len(names) > most else f"{shown} ({len(names)})"


def find_duplicates(predictions: Sequence[Predictions]) -> dict[str, str]:
    """Return the members whose logits are, to the last bit, those of one before, and that one's name.

    Args:
        predictions: Of the same images.
    """
    seen: dict[bytes, list[Predictions]] = {}
    found = {}
    for one in predictions:
        alike = seen.setdefault(one.logits[:1].tobytes(), [])  # those that begin in the same way
        same = next((other for other in alike if np.array_equal(other.logits, one.logits)), None)
        if same is None:
            alike.append(one)
        else:
            found[one.member] = same.member
    return found


def digest_arrays(*arrays: NDArray[Any]) -> str:
    """Return a SHA-256 over arrays: their shapes, dtypes and bytes.

    Example:
        >>> digest_arrays(np.zeros(3)) == digest_arrays(np.zeros(4))
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
