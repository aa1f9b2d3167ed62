"""Compute or load the predictions of a pool's members on a split, and write predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import Views
from fmcli.ensemble.external import find_labels_file, is_external, read_external, read_labels, to_predictions
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file, save_predictions
from fmcli.errors import DataError, Remedy, UsageError, printable
from fmcli.members.pool import Pool
from fmcli.members.stored import ANY_SPLIT, StoredMember
from fmcli.storage.atomic import folder_names


class PredictOptions(TypedDict, total=False):
    """Options of `predict_pool`, for functions that pass them on.

    Args:
        data_root: First folder to search for built-in sources.
        labels: File of the true classes for predictions from other tools. Default: the file next to them.
        views: Test-time augmentation of networks: the views of each image to average over.
    """

    data_root: Path | None
    labels: Path | None
    views: Views


def predict_pool(
    pool: Pool,
    split: str,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions]:
    """Return each member's predictions on a split: compute them with its network, or load them from its file.

    Args:
        pool: The members.
        split: `train`, `validation` or `test`.
        data_root: See `PredictOptions`.
        labels: See `PredictOptions`.
        views: See `PredictOptions`.

    Raises:
        DataError: Images or stored predictions are missing or damaged, or predictions have no labels.
        CheckpointError: The images have changed since a member was trained.
        UsageError: `views` is set and a member has no network.
    """
    if views != "none":
        pool.require_networks()
    computed: Iterator[Predictions] = iter(())
    if pool.checkpoints:
        from fmcli.members.inference import predict_splits  # imports torch, which takes seconds

        computed = iter(predict_splits(pool.checkpoints, split, data_root=data_root, views=views))
    found: dict[int, Predictions] = {}
    external: dict[int, Path] = {}
    for index, (member, name) in enumerate(zip(pool.members, pool.names, strict=True)):
        if not isinstance(member, StoredMember):
            found[index] = replace(next(computed), member=name)
        elif is_external(path := _file_of_split(member, name, split)):
            external[index] = path
        else:
            found[index] = replace(_load(path, split), member=name)
    found |= _load_external(external, pool.names, split, labels, reference=next(iter(found.values()), None))
    return [replace(found[index], group=group) if group else found[index] for index, group in enumerate(pool.groups)]


def _load_external(
    files: Mapping[int, Path], names: Sequence[str], split: str, labels: Path | None, reference: Predictions | None
) -> dict[int, Predictions]:
    """Load the predictions from other tools.

    Args:
        files: Predictions file of each member, by its index in the pool.
        names: Names of all members of the pool.
        split: `train`, `validation` or `test`.
        labels: File of the true classes. Default: the file next to the predictions.
        reference: Predictions for the same images, from which missing labels and class names are taken.
    """
    contents = {index: read_external(path) for index, path in files.items()}
    label_files = {index: labels or find_labels_file(path, split) for index, path in files.items()}

    def missing(index: int) -> tuple[bool, bool]:
        return contents[index].labels is None and label_files[index] is None, contents[index].class_names is None

    found: dict[int, Predictions] = {}
    # Complete files come first, because the other files take labels and class names from them.
    for index in sorted(contents, key=missing):
        file = label_files[index]
        found[index] = to_predictions(
            contents[index],
            name=names[index],
            split=split,
            reference=reference,
            labels=None if file is None else read_labels(file),
        )
        reference = reference or found[index]
    return found


def _file_of_split(member: StoredMember, name: str, split: str) -> Path:
    path = member.files.get(split) or member.files.get(ANY_SPLIT)
    if path is None:
        raise DataError(
            f"{printable(member.path)} has predictions of {printable(name)} on {', '.join(member.files)}, "
            f"not on {split}",
            hint=f"add a file with predictions on {split}, or choose another split",
            remedies=[Remedy("split", next(iter(member.files)))],
        )
    return path


def _load(path: Path, split: str) -> Predictions:
    predictions = load_predictions(path)
    if predictions.split != split:
        raise DataError(
            f"{printable(path)} has predictions on {printable(predictions.split)}, but its name says {split}",
            hint=f"rename the file to {predictions_file(printable(predictions.split))}",
        )
    return predictions


def find_other_predictions(paths: Sequence[Path]) -> list[Path]:
    """Return other members' predictions on the same split in the folder that `write_predictions` wrote to.

    Args:
        paths: The files that `write_predictions` returned.
    """
    folder = paths[0].parent.parent
    return [path for path in sorted(folder.glob(f"*/{paths[0].name}")) if path not in paths]


def write_predictions(path: Path, predictions: Sequence[Predictions], *, views: Views = "none") -> list[Path]:
    """Write each member's predictions: to one file if there is one member, otherwise to one subfolder per member.

    Args:
        path: A file for one member if it ends in `.safetensors`; otherwise a folder.
        predictions: One entry per member.
        views: The views that the predictions were averaged over.

    Returns:
        The files.

    Raises:
        UsageError: The path is one file for several members or has another suffix; different predictions would be
            replaced; or predictions over several views would replace the predictions that training wrote.
        CheckpointError: There is already a file of a different kind.
        FmcliError: A file cannot be written.
    """
    files = _files_to_write(path, predictions)
    for file, member in zip(files, predictions, strict=True):
        _check_replaceable(file, member)
        if views != "none" and (file.parent / MODEL_FILE).exists():
            raise UsageError(
                f"averages over views cannot be written to {printable(file)}: "
                "next to a checkpoint, fmcli expects predictions without views",
                hint="choose another path",
            )
    for file, member in zip(files, predictions, strict=True):
        save_predictions(file, member)
    return files


def _files_to_write(path: Path, predictions: Sequence[Predictions]) -> list[Path]:
    if not path.suffix or path.is_dir():
        folders = folder_names([member.member for member in predictions])
        return [
            path / folder / predictions_file(member.split) for folder, member in zip(folders, predictions, strict=True)
        ]
    if path.suffix != ".safetensors":
        raise UsageError(
            f"predictions cannot be written to {printable(path)}: its name ends in {printable(path.suffix)}",
            hint="give a folder or, for one member, a file whose name ends in .safetensors",
        )
    if len(predictions) > 1:
        raise UsageError(
            f"{printable(path)} is one file, but there are {len(predictions)} members",
            hint="give a folder; each member gets a subfolder",
        )
    return [path]


def _check_replaceable(path: Path, predictions: Predictions) -> None:
    if not path.exists():
        return
    existing = load_predictions(path, header_only=True)
    same = (existing.recipe_digest, existing.split) == (predictions.recipe_digest, predictions.split)
    if not same or (not existing.recipe_digest and existing.member != predictions.member):
        raise UsageError(
            f"{printable(path)} has predictions of {_describe(existing)}, which would be replaced by "
            f"{_describe(predictions)}",
            hint="choose another path, or remove the file",
        )


def _describe(predictions: Predictions) -> str:
    recipe = f"recipe {predictions.recipe_digest[:12]}" if predictions.recipe_digest else "another tool"
    return f"{printable(predictions.member)} on {printable(predictions.split)} ({recipe})"
