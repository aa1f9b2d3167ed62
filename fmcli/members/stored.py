"""Find members that have stored predictions but no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
from fmcli.choices import SPLITS
from fmcli.ensemble.external import is_external, is_labels_file
from fmcli.ensemble.predictions import FORMAT, load_predictions
from fmcli.errors import CheckpointError, printable
from fmcli.storage.reading import read_metadata

_TRAINING_FILES = (MODEL_FILE, HISTORY_FILE, RECIPE_FILE)
ANY_SPLIT = ""
"""Key of a stored member's file that does not say which split its predictions are of."""


@dataclass(frozen=True, slots=True)
class StoredMember:
    """A member that has stored predictions but no network.

    Args:
        name: Name of the member.
        path: Its file or folder.
        files: Predictions file of each split; the file under `ANY_SPLIT` serves every split.
    """

    name: str
    path: Path
    files: Mapping[str, Path]

    @property
    def group(self) -> str:
        """Group in a two-level vote, as stored in fmcli's predictions; empty with other tools."""
        path = next(iter(self.files.values()))
        return "" if is_external(path) else load_predictions(path, header_only=True).group

    @property
    def is_external(self) -> bool:
        """Whether another tool wrote the predictions; these can lack the true classes."""
        return any(is_external(path) for path in self.files.values())


def find_stored_members(path: Path) -> list[StoredMember]:
    """Return the members whose predictions a file or folder holds; none if it holds something else.

    A folder with predictions that are named after splits, such as `test.safetensors`, is one member. In any other
    folder, each subfolder of that kind and each file of predictions is a member. Hidden files, files of true classes
    and files with other suffixes are ignored.

    Raises:
        CheckpointError: A folder mixes predictions with a file or folder that looks like a member but is none.
    """
    if path.is_dir():
        return _members_in_folder(path)
    return [_member_of_file(path)] if path.is_file() and (is_external(path) or _holds_predictions(path)) else []


def _members_in_folder(folder: Path) -> list[StoredMember]:
    if any(any(folder.glob(pattern)) for name in _TRAINING_FILES for pattern in (name, f"*/{name}")):
        return []  # a run or a member's folder, perhaps with unfinished training
    own = _files_by_split(folder)
    folders = {
        path: _files_by_split(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and _prediction_files(path)
    }
    single_files = [path for path in _prediction_files(folder) if path not in own.values()]
    if own:
        _refuse_any([*(path for path, files in folders.items() if files), *single_files], f"{folder} is one member")
        return [StoredMember(folder.resolve().name, folder, own)]
    found = {path: StoredMember(path.name, path, files) for path, files in folders.items() if files}
    found |= {path: _member_of_file(path) for path in single_files if is_external(path) or _holds_predictions(path)}
    if found:
        _refuse_any([path for path in (*folders, *single_files) if path not in found], "it holds no predictions")
    return [found[path] for path in sorted(found)]


def _refuse_any(paths: Sequence[Path], reason: str) -> None:
    if paths:
        raise CheckpointError(
            f"{printable(paths[0])} would not vote: {printable(reason)}",
            hint="a member is MEMBER/test.safetensors, MEMBER.safetensors, or the same as .npy or .csv; "
            "name each member, or move this one elsewhere",
        )


def _prediction_files(folder: Path) -> list[Path]:
    """Return the files of a folder that have a suffix of predictions, sorted."""
    return sorted(
        path
        for path in folder.iterdir()
        if (is_external(path) or path.suffix == ".safetensors")
        and path.is_file()
        and not path.name.startswith(".")
        and not is_labels_file(path)
    )


def _holds_predictions(path: Path) -> bool:
    return read_metadata(path).get("format") == FORMAT


def _files_by_split(folder: Path, chosen: Path | None = None) -> dict[str, Path]:
    """Return the files of a folder that are named after splits.

    Args:
        folder: A member's folder.
        chosen: The file to use for its split, even if there are more.

    Raises:
        CheckpointError: Two files are named after one split, and neither is the chosen one.
    """
    found: dict[str, Path] = {} if chosen is None else {chosen.stem: chosen}
    for path in _prediction_files(folder):
        if path.stem not in SPLITS or (chosen and path.stem == chosen.stem):
            continue
        if path.stem in found:
            raise CheckpointError(
                f"{printable(found[path.stem])} and {printable(path)} are both predictions on {path.stem}",
                hint="name the file to use, or move the other one elsewhere",
            )
        found[path.stem] = path
    return {split: found[split] for split in SPLITS if split in found}


def _member_of_file(path: Path) -> StoredMember:
    """Return the member of a predictions file. If the file is named after a split, include the other splits' files."""
    if path.stem in SPLITS:
        return StoredMember(path.parent.resolve().name, path, _files_by_split(path.parent, path))
    split = ANY_SPLIT if is_external(path) else load_predictions(path, header_only=True).split
    return StoredMember(path.stem, path, {split: path})
