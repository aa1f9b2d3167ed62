"""The source `idx:DIR`: a folder of IDX files with the file names of MNIST."""

from pathlib import Path

from fmcli.data.arrays import to_images
from fmcli.data.idx import find_idx_file, open_idx, read_idx
from fmcli.data.sources.base import LabelledImages, SourceImages, SourceRequest
from fmcli.errors import DataError, printable
from fmcli.storage.reading import read_text

MAX_CLASSES_FILE_BYTES = 1 << 20
_PREFIXES = {"train": ("train",), "test": ("t10k", "test"), "validation": ("validation", "val")}
_NAMES_HINT = (
    "name the files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, gzipped or not"
)


def load(request: SourceRequest) -> SourceImages:
    """Read the files of each split. Class names are the lines of `classes.txt`, if it exists.

    Raises:
        DataError: A file is damaged, or one file of a pair is missing.
    """
    folder = request.find_path()
    splits = {split: arrays for split in _PREFIXES if (arrays := _read_split(folder, split)) is not None}
    return SourceImages(folder, splits, _read_class_names(folder), names_hint=_NAMES_HINT)


def recognizes(path: Path) -> bool:
    """Return whether a folder has a file of training images."""
    return _find_images(path, "train") is not None


def _find_images(folder: Path, prefix: str) -> Path | None:
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-images-idx4-ubyte")
    return next((path for name in names if (path := find_idx_file(folder / name))), None)


def _read_split(folder: Path, split: str) -> LabelledImages | None:
    """Return the images and labels of a split, or None if the folder has neither."""
    for prefix in _PREFIXES[split]:
        images = _find_images(folder, prefix)
        labels = find_idx_file(folder / f"{prefix}-labels-idx1-ubyte")
        if images and labels:
            return to_images(open_idx(images), where=images), read_idx(labels)[0]
        if images or labels:
            found, missing = ("labels", "images") if labels else ("images", "labels")
            raise DataError(f"{printable(folder)} has {prefix} {found} but no {prefix} {missing}")
    return None


def _read_class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    lines = read_text(path, MAX_CLASSES_FILE_BYTES, DataError).splitlines()
    return tuple(line.strip() for line in lines if line.strip())
