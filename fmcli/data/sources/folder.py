"""The source `folder:DIR`: image files in a subfolder for each class."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fmcli.data.image_files import IMAGE_SUFFIXES, find_image_files
from fmcli.data.resized_images import resize_image_files
from fmcli.data.sources.base import LabelledImages, SourceImages, SourceRequest
from fmcli.errors import DataError, join_names, printable

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid"),
}
"""Accepted folder names of each split, in lower case."""
TEST_EVERY = 5
"""Every 5th image of each class is used for testing if the folder has no folders `train` and `test`."""
_ADD_CLASS_FOLDERS = "put the images of each class into a folder named after the class"


def load(request: SourceRequest) -> SourceImages:
    """Read `FOLDER/train/CLASS/…` and `FOLDER/test/CLASS/…`, or `FOLDER/CLASS/…`.

    In the second case, every 5th image of each class is used for testing. Hidden files and folders are ignored, and so
    is anything else next to `train` and `test`. The images are shuffled in an order that depends only on the file
    names, and resized as `resize_image_files` describes. The classes are the folder names, sorted, or `data.classes`.

    Raises:
        DataError: The folders do not have this form, or the image files cannot be read or differ in size.
    """
    folder, spec = request.find_path(), request.spec
    names, files = _list_image_files(folder, spec.classes)
    paths = [path for labelled in files.values() for path, _ in labelled]
    # The background is found before resizing, because padding must not count as background.
    pixels, background = resize_image_files(folder, paths, size=spec.size, channels=spec.channels)
    splits: dict[str, LabelledImages] = {}
    start = 0
    for split, labelled in files.items():
        labels = np.array([label for _, label in labelled], np.int64)
        splits[split] = pixels[start : start + len(labels)], labels
        start += len(labels)
    return SourceImages(folder, splits, names, background)


def recognizes(path: Path) -> bool:
    """Return whether a folder has subfolders with images."""
    return path.is_dir() and any(file.parent != path for file in find_image_files(path))


def _list_image_files(
    folder: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """Return the class names, and the shuffled image files of each split: path relative to the folder, and label."""
    split_folders = _find_split_folders(folder)
    names = _class_names(split_folders.get("train", folder), classes)
    for parent in split_folders.values() or [folder]:
        _refuse_other_classes(parent, names)
    if split_folders:
        splits = {
            split: {name: _files_of_class(folder, parent / name) for name in names if (parent / name).is_dir()}
            for split, parent in split_folders.items()
        }
    else:
        files = {name: sorted(_files_of_class(folder, folder / name), key=_shuffle_key) for name in names}
        splits = {
            "train": {name: [path for i, path in enumerate(paths) if i % TEST_EVERY] for name, paths in files.items()},
            "test": {name: paths[::TEST_EVERY] for name, paths in files.items()},
        }
    _check_training_images(folder, names, splits)
    labelled = {
        split: [(path, label) for label, name in enumerate(names) for path in files.get(name, ())]
        for split, files in splits.items()
    }
    return names, {
        split: sorted(files, key=lambda labelled_file: _shuffle_key(labelled_file[0]))
        for split, files in labelled.items()
    }


def _find_split_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if the subfolders are classes.

    A folder `train` without subfolders is a class, unless there are other splits.
    """
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    found: dict[str, Path] = {}
    for subfolder in _subfolders(folder):
        split = split_of.get(subfolder.name.lower())
        if split in found:
            raise DataError(
                f"{printable(found[split])} and {printable(subfolder)} both contain {split} images",
                hint="merge these folders",
            )
        if split:
            found[split] = subfolder
    if not found:
        return {}
    if "train" not in found:
        name = printable(next(iter(found.values())).name)
        raise DataError(
            f"{printable(folder)} has a folder {name!r} but no folder 'train'",
            hint=f"add a folder 'train' with the training images; if {name!r} is a class, rename the folder",
        )
    if len(found) == 1 and not _subfolders(found["train"]):
        return {}
    if "test" not in found:
        raise DataError(
            f"{printable(folder)} has a folder {printable(found['train'].name)!r} but no folder 'test'",
            hint="add a folder 'test' with the test images; to use every "
            f"{TEST_EVERY}th training image for testing instead: data.source = 'folder:{printable(found['train'])}'",
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
        return sorted(found, key=lambda path: path.name)  # Windows would sort paths without regard to case
    except OSError as error:
        raise DataError(f"cannot read {printable(folder)}: {error.strerror}") from error


def _class_names(folder: Path, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes that have a folder of training images, in label order."""
    found = tuple(path.name for path in _subfolders(folder))
    if not found:
        raise DataError(f"{printable(folder)} has no class folders", hint=_ADD_CLASS_FOLDERS)
    for name in found:
        if not name.isprintable() or name.encode(errors="replace").decode() != name:
            raise DataError(
                f"{printable(folder / name)}: the name of a class must be printable UTF-8", hint="rename the folder"
            )
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise DataError(
            f"{printable(folder)} has no folder for the class {printable(missing[0])}; it has {join_names(found)}",
            hint="give each class folder once in data.classes, in label order",
        )
    if len(found) == 1:
        inner = folder / found[0]
        raise DataError(
            f"{printable(folder)} has only one class folder, {printable(inner.name)}; at least two are needed",
            hint=f"if the class folders are inside it: data.source = 'folder:{printable(inner)}'"
            if len(_subfolders(inner)) > 1
            else _ADD_CLASS_FOLDERS,
        )
    return found if wanted is None else wanted


def _refuse_other_classes(folder: Path, names: tuple[str, ...]) -> None:
    unknown = [path.name for path in _subfolders(folder) if path.name not in names]
    if unknown:
        raise DataError(
            f"{printable(folder)} has folders that are not classes: {join_names(unknown)}",
            hint="add a folder of training images for each class; if the recipe has data.classes, add the class there",
        )


def _files_of_class(folder: Path, class_folder: Path) -> list[str]:
    """Return the paths of a class's image files, relative to the whole folder."""
    return [path.relative_to(folder).as_posix() for path in find_image_files(class_folder)]


def _shuffle_key(path: str) -> bytes:
    """Return a sort key that mixes the classes and depends only on the path."""
    return hashlib.sha256(os.fsencode(path)).digest()


def _check_training_images(
    folder: Path, names: tuple[str, ...], splits: Mapping[str, Mapping[str, Sequence[str]]]
) -> None:
    """Refuse a class without training images."""
    for name in names:
        if splits["train"].get(name):
            continue
        if any(files.get(name) for files in splits.values()):
            hint = "add training images; all images of this class are used for testing or validation"
        else:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            hint = f"add images, or remove the folder of this class; image files end in {suffixes}"
        raise DataError(f"{printable(folder)} has no training images of the class {printable(name)}", hint=hint)
