"""Members without a network: predictions files of fmcli or of other tools."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
from fmcli.choices import SPLITS, Views
from fmcli.ensemble.external import (
    count_missing,
    find_labels_file,
    is_external,
    is_labels_file,
    read_external,
    read_labels,
    to_predictions,
)
from fmcli.ensemble.predictions import FORMAT, Predictions, load_predictions, predictions_file
from fmcli.errors import CheckpointError, DataError, Remedy, printable
from fmcli.members.member import ImageBatch, NoNetworkError, Opened
from fmcli.storage.reading import has_format

_TRAINING_FILES = (MODEL_FILE, HISTORY_FILE, RECIPE_FILE)
ANY_SPLIT = ""
"""Key for a file of predictions that does not say which split it belongs to."""


@dataclass(frozen=True, slots=True)
class StoredMember:
    """A member that has stored predictions but no network. See `Member` for the attributes.

    Args:
        name: Name of the member.
        path: Its file or folder.
        files: Predictions file of each split. A file under `ANY_SPLIT` is used for every split.
    """

    name: str
    path: Path
    files: Mapping[str, Path]

    @property
    def file(self) -> Path:
        """The file of one of the splits."""
        return next(iter(self.files.values()))

    @property
    def group(self) -> str:
        """Group in a two-level vote. It is stored in fmcli's predictions, and empty for other tools."""
        return "" if is_external(self.file) else load_predictions(self.file, header_only=True).group

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order; empty for other tools, whose predictions can take the order of another member."""
        return () if is_external(self.file) else load_predictions(self.file, header_only=True).class_names

    @property
    def in_pack(self) -> bool:
        """False: a pack contains only networks."""
        return False

    @property
    def file_digest(self) -> str:
        """Empty: predictions can be replaced without changing the ensemble."""
        return ""

    @property
    def weights_digest(self) -> str:
        """Empty without a network."""
        return ""

    @property
    def training(self) -> None:
        """None without a network."""

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits with predictions."""
        return self.files

    @property
    def is_external(self) -> bool:
        """Whether another tool wrote the predictions. They may come without the true classes."""
        return any(is_external(path) for path in self.files.values())

    def count_missing(self, split: str, labels: Path | None) -> int:
        """Return how much the predictions take from other members; see `external.count_missing`."""
        path = self._file_of_split(split)
        return count_missing(path, labels or find_labels_file(path, split)) if is_external(path) else 0

    def predict(
        self,
        split: str,
        *,
        data_root: Path | None = None,
        labels: Path | None = None,
        reference: Predictions | None = None,
    ) -> Predictions:
        """Load the predictions on a split; see `Member.predict`."""
        path = self._file_of_split(split)
        if not is_external(path):
            return _load(path, split)
        labels = labels or find_labels_file(path, split)
        return to_predictions(
            read_external(path),
            name=self.name,
            split=split,
            reference=reference,
            labels=None if labels is None else read_labels(labels),
        )

    def predict_images(self, batch: ImageBatch, *, views: Views = "none") -> NDArray[np.float32]:
        """Raise an error.

        Raises:
            NoNetworkError: The member has no network.
        """
        raise NoNetworkError(self.name)

    def _file_of_split(self, split: str) -> Path:
        path = self.files.get(split) or self.files.get(ANY_SPLIT)
        if path is None:
            raise DataError(
                f"{printable(self.path)} has predictions of {printable(self.name)} on {', '.join(self.files)}, "
                f"not on {split}",
                hint=f"add a file with predictions on {split}, or choose another split",
                remedies=[Remedy("split", next(iter(self.files)))],
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


def open_stored(path: Path, _: str) -> Opened | None:
    """Return the members with stored predictions in a file or folder, or None if it has something else.

    A folder with predictions files that are named after splits, such as `test.safetensors`, is one member. In any other
    folder, each such subfolder and each predictions file is a member. Hidden files, files of true classes and files
    with other suffixes are ignored.

    Raises:
        CheckpointError: Next to predictions, there is a file or folder that looks like a member but is not one.
    """
    if path.is_dir():
        members = _members_in_folder(path)
        return Opened(members) if members else None
    if path.is_file() and (is_external(path) or has_format(path, FORMAT)):
        return Opened([_member_of_file(path)])
    return None


def _members_in_folder(folder: Path) -> list[StoredMember]:
    if any(any(folder.glob(pattern)) for name in _TRAINING_FILES for pattern in (name, f"*/{name}")):
        return []  # a run or a member's folder, perhaps with partly trained members
    own = _files_by_split(folder)
    folders = {
        path: _files_by_split(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and _prediction_files(path)
    }
    single_files = [path for path in _prediction_files(folder) if path not in own.values()]
    if own:
        reason = f"{folder} is one member, because it has {next(iter(own.values())).name}"
        _refuse_any([*(path for path, files in folders.items() if files), *single_files], reason)
        return [StoredMember(folder.resolve().name, folder, own)]
    found = {path: StoredMember(path.name, path, files) for path, files in folders.items() if files}
    found |= {path: _member_of_file(path) for path in single_files if is_external(path) or has_format(path, FORMAT)}
    if found:
        _refuse_any([path for path in (*folders, *single_files) if path not in found], "it has no predictions")
    return [found[path] for path in sorted(found)]


def _refuse_any(paths: Sequence[Path], reason: str) -> None:
    if paths:
        raise CheckpointError(
            f"{printable(paths[0])} cannot vote: {printable(reason)}",
            hint="rename the files of each member to MEMBER/test.safetensors or MEMBER.safetensors (or .npy, .csv), "
            f"or move {printable(paths[0].name)} to another folder",
        )


def _prediction_files(folder: Path) -> list[Path]:
    """Return the files in a folder that have the suffix of predictions files, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if (is_external(path) or path.suffix == ".safetensors")
        and path.is_file()
        and not path.name.startswith(".")
        and not is_labels_file(path)
    )


def _files_by_split(folder: Path, chosen: Path | None = None) -> dict[str, Path]:
    """Return the predictions files in a folder that are named after splits.

    Args:
        folder: A member's folder.
        chosen: The file to use for its split, even if there are other files for this split.

    Raises:
        CheckpointError: Two files are named after the same split, and neither is the chosen one.
    """
    found: dict[str, Path] = {} if chosen is None else {chosen.stem: chosen}
    for path in _prediction_files(folder):
        if path.stem not in SPLITS or (chosen and path.stem == chosen.stem):
            continue
        if path.stem in found:
            raise CheckpointError(
                f"{printable(found[path.stem])} and {printable(path)} are both predictions on {path.stem}",
                hint="give the path of one of these files, or move the other one to another folder",
            )
        found[path.stem] = path
    return {split: found[split] for split in SPLITS if split in found}


def _member_of_file(path: Path) -> StoredMember:
    """Return the member of a predictions file. If it is named after a split, include the files of other splits."""
    if path.stem in SPLITS:
        return StoredMember(path.parent.resolve().name, path, _files_by_split(path.parent, path))
    split = ANY_SPLIT if is_external(path) else load_predictions(path, header_only=True).split
    return StoredMember(path.stem, path, {split: path})
