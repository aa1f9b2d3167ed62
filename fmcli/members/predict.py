"""The predictions of a pool's members: computed by their networks, or as stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import Views
from fmcli.ensemble.external import find_labels_file, is_external, read_external, read_labels, to_predictions
from fmcli.ensemble.predictions import (
    Predictions,
    PredictionsHeader,
    load_predictions,
    predictions_file,
    read_predictions_header,
    save_predictions,
)
from fmcli.errors import DataError, UsageError, printable
from fmcli.members.pool import ANY_SPLIT, Pool, StoredMember
from fmcli.storage.atomic import folder_names

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import (
        Checkpoint,  # torch takes seconds to import, and predictions alone do without it
    )


def predict_pool(
    pool: Pool,
    split: str,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions]:
    """Return each member's predictions on a split: computed by its network, or as stored.

    Args:
        pool: The members.
        split: `train`, `validation` or `test`.
        data_root: Where to look first for built-in sources.
        labels: A file of the true classes, for other tools' predictions; by default one that lies beside them.
        views: Which altered views of each image networks are to average over.

    Raises:
        DataError: Images or stored predictions are missing or broken, or have no labels.
        CheckpointError: The images are not what a member was trained on.
        UsageError: Views are asked for, and of a member there are predictions alone.
    """
    if views != "none":
        pool.networks()
    computed = iter(_compute(pool.checkpoints, split, data_root, views))
    found: dict[int, Predictions] = {}
    foreign: dict[int, Path] = {}
    for place, (member, name) in enumerate(zip(pool.members, pool.names, strict=True)):
        if not isinstance(member, StoredMember):
            found[place] = replace(next(computed), member=name)
            continue
        path = _file_for(member, name, split)
        if is_external(path):
            foreign[place] = path
        else:
            found[place] = replace(_load(path, split), member=name)
    like = next(iter(found.values()), None)
    read = {place: read_external(path) for place, path in foreign.items()}
    beside = {place: labels or find_labels_file(path, split) for place, path in foreign.items()}
    # First those that others can be like: what knows the true classes, then what knows the classes' names.
    no_labels = {place: read[place].labels is None and beside[place] is None for place in read}
    for place in sorted(read, key=lambda place: (no_labels[place], read[place].class_names is None)):
        source = beside[place]
        given = None if source is None else read_labels(source)
        found[place] = to_predictions(read[place], name=pool.names[place], split=split, reference=like, labels=given)
        like = like or found[place]
    return [replace(found[place], group=group) if group else found[place] for place, group in enumerate(pool.groups)]


def _compute(members: Sequence[Checkpoint], split: str, data_root: Path | None, views: Views) -> list[Predictions]:
    if not members:
        return []
    from fmcli.members.inference import predict_splits

    return predict_splits(members, split, data_root=data_root, views=views)


def _file_for(member: StoredMember, name: str, split: str) -> Path:
    path = member.files.get(split) or member.files.get(ANY_SPLIT)
    if path is None:
        raise DataError(
            f"{printable(member.place)} holds predictions of {printable(name)} on {', '.join(member.files)}, "
            f"not on {split}",
            hint=f"--split {next(iter(member.files))}, or put its predictions on {split} beside them",
        )
    return path


def _load(path: Path, split: str) -> Predictions:
    predictions = load_predictions(path)
    if predictions.split != split:
        raise DataError(
            f"{printable(path)} says that it is of {printable(predictions.split)}, not of {split}",
            hint="a file's name and what it holds must agree: was it renamed?",
        )
    return predictions


def neighbours(paths: Sequence[Path]) -> list[Path]:
    """Return what else lies, with predictions of the same split, in the folder of folders that was written into.

    Args:
        paths: As `write_predictions` returned them.
    """
    folder = paths[0].parent.parent
    return [path for path in sorted(folder.glob(f"*/{paths[0].name}")) if path not in paths]


def write_predictions(place: Path, predictions: Sequence[Predictions], *, views: Views = "none") -> list[Path]:
    """Write each member's predictions: into one file, or for several into a folder of each in a folder.

    Args:
        place: A file for one member, where it ends in `.safetensors`; else a folder.
        predictions: One entry a member.
        views: Which altered views of each image they are the mean of.

    Returns:
        The files.

    Raises:
        UsageError: Several members do not fit into one file, the place is named as neither a file nor a folder,
            other predictions lie there, or those of views would stand for what training leaves beside a checkpoint.
        CheckpointError: Something else lies where a file is to be written.
        FmcliError: A file cannot be written.
    """
    if place.suffix == ".safetensors" and not place.is_dir():
        if len(predictions) > 1:
            raise UsageError(
                f"{printable(place)} is one file, and there are {len(predictions)} members",
                hint="name a folder: each member gets one of its own in it",
            )
        paths = [place]
    elif place.suffix and not place.is_dir():
        raise UsageError(
            f"predictions cannot be written as {printable(place)}: its name ends in {printable(place.suffix)}",
            hint="name a folder, or for one member a file that ends in .safetensors",
        )
    else:
        folders = folder_names([one.member for one in predictions])
        paths = [place / word / predictions_file(one.split) for word, one in zip(folders, predictions, strict=True)]
    for path, one in zip(paths, predictions, strict=True):
        _check_replaceable(path, one)
        if views != "none" and (path.parent / MODEL_FILE).exists():
            raise UsageError(
                f"{printable(path)} lies beside a checkpoint, and would pass for its answers without views",
                hint="choose another place",
            )
    for path, one in zip(paths, predictions, strict=True):
        save_predictions(path, one)
    return paths


def _check_replaceable(path: Path, predictions: Predictions) -> None:
    if not path.exists():
        return
    there = read_predictions_header(path)
    same = (there.recipe_digest, there.split) == (predictions.recipe_digest, predictions.split)
    if not same or (not there.recipe_digest and there.member != predictions.member):
        raise UsageError(
            f"{printable(path)} holds predictions of {_described(there)}, and those of {_described(predictions)} "
            "would replace them",
            hint="choose another place, or remove what lies there",
        )


def _described(one: Predictions | PredictionsHeader) -> str:
    recipe = f"recipe {one.recipe_digest[:12]}" if one.recipe_digest else "another tool"
    return f"{printable(one.member)} on {printable(one.split)} ({recipe})"
