"""Read labelled images from a folder that has a subfolder for each class."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcli.data.image_files import IMAGE_SUFFIXES, find_image_files
from fmcli.data.image_set import ImageSet, check_image_set
from fmcli.data.resized_images import resize_image_files
from fmcli.errors import DataError, printable

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "val", "valid"),
}
"""Accepted folder names of each split, in lower case."""
TEST_EVERY = 5
"""Every 5th image of each class is used for testing if the folder has no `train` and `test`."""
_ADD_CLASS_FOLDERS = "put the images of each class into a folder named after the class"
_MAX_NAMED = 8  # folders that an error names

_ClassFiles = Mapping[str, Sequence[str]]
"""Paths of the image files of each class, relative to the whole folder."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """The image files of a folder, split by split, in the order of the resulting images.

    Args:
        class_names: Class names in label order.
        paths: Path of each image file, relative to the folder.
        labels: Label of each image file, int64 (N,).
        splits: Range of indices of each split.
    """

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: Mapping[str, slice]


def read_image_folder(
    folder: Path, *, classes: tuple[str, ...] | None, size: tuple[int, int] | None, channels: int | None
) -> dict[str, ImageSet]:
    """Read `FOLDER/train/CLASS/…` and `FOLDER/test/CLASS/…`, or `FOLDER/CLASS/…`.

    Hidden files and folders are ignored, and so is anything else next to `train` and `test`. The images are shuffled
    in an order that depends only on the file names, and resized as `resize_image_files` describes.

    Args:
        folder: Folder that holds `train` and `test` and may hold `validation`, each with a folder per class; or that
            holds the class folders itself, and then every 5th image of each class is used for testing.
        classes: Class names in label order; by default the folder names, sorted.
        size: (height, width) of the images; by default the size of the files, which must all be the same.
        channels: 1 or 3; by default 1 if all images are grey, otherwise 3.

    Returns:
        The images of each split that exists; `train` and `test` always do.

    Raises:
        DataError: The folders do not have this form, or the image files cannot be read or differ in size.
    """
    listing = _list_image_files(folder, classes)
    pixels, background = resize_image_files(folder, listing.paths, size=size, channels=channels)
    sets = {}
    for split, indices in listing.splits.items():
        source = f"{printable(folder)} ({split})"
        images = check_image_set(pixels[indices], listing.labels[indices], listing.class_names, where=source)
        # The background of the files: padding must not count as background.
        sets[split] = replace(images, background=background)
    return sets


def _list_image_files(folder: Path, classes: tuple[str, ...] | None) -> _Listing:
    if not folder.is_dir():
        raise DataError(
            f"{printable(folder)} is not a folder",
            hint="data.source = 'folder:DIR' needs a folder that has a subfolder of images for each class",
        )
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
    return _shuffle(folder, names, splits)


def _find_split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits, or nothing if the subfolders are classes.

    A single folder `train` that holds images itself is a class.
    """
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    found: dict[str, Path] = {}
    for subfolder in _subfolders(folder):
        split = split_of.get(subfolder.name.lower())
        if split in found:
            raise DataError(
                f"{printable(found[split])} and {printable(subfolder)} both hold the {split} split", hint="merge them"
            )
        if split:
            found[split] = subfolder
    if not found:
        return {}
    if "train" not in found:
        name = printable(next(iter(found.values())).name)
        raise DataError(
            f"{printable(folder)} has a folder {name!r} but no folder 'train'",
            hint=f"add a folder 'train' with the training images; if {name!r} is a class, rename it",
        )
    if not _subfolders(found["train"]):
        if len(found) == 1:
            return {}
        raise DataError(f"{printable(found['train'])} has no class folders", hint=_ADD_CLASS_FOLDERS)
    if "test" not in found:
        raise DataError(
            f"{printable(folder)} has a folder {printable(found['train'].name)!r} but no folder 'test'",
            hint=f"add a folder 'test'; or use every {TEST_EVERY}th training image for testing: "
            f"data.source = 'folder:{printable(found['train'])}'",
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
                f"{printable(folder / name)}: the name of a class must be printable UTF-8", hint="rename this folder"
            )
    missing = [name for name in wanted or () if name not in found]
    if missing:
        raise DataError(
            f"{printable(folder)} has no folder for the class {printable(missing[0])}; it has {_join(found)}",
            hint="data.classes must name every class folder once, in label order",
        )
    if len(found) == 1:
        inner = folder / found[0]
        raise DataError(
            f"{printable(folder)} has only one class folder, {printable(inner.name)}; two or more are needed",
            hint=f"if the class folders are inside it: data.source = 'folder:{printable(inner)}'"
            if len(_subfolders(inner)) > 1
            else _ADD_CLASS_FOLDERS,
        )
    if wanted is None:
        return found
    if len(set(wanted)) != len(wanted):
        raise DataError("two classes have the same name", hint="data.classes must name every class folder once")
    return wanted


def _refuse_other_classes(folder: Path, names: tuple[str, ...]) -> None:
    unknown = [path.name for path in _subfolders(folder) if path.name not in names]
    if unknown:
        raise DataError(
            f"{printable(folder)} has folders that are not classes: {_join(unknown)}",
            hint="each class needs a folder of training images; if the recipe has data.classes, add the class there",
        )


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(printable, names[:_MAX_NAMED])) + more


def _files_of_class(folder: Path, class_folder: Path) -> list[str]:
    """Return the paths of a class's image files, relative to the whole folder."""
    return [path.relative_to(folder).as_posix() for path in find_image_files(class_folder)]


def _shuffle_key(path: str) -> bytes:
    """Return a sort key that mixes the classes in an order that depends only on the paths."""
    return hashlib.sha256(os.fsencode(path)).digest()


def _shuffle(folder: Path, names: tuple[str, ...], splits: Mapping[str, _ClassFiles]) -> _Listing:
    label_of = {name: label for label, name in enumerate(names)}
    paths: list[str] = []
    labels: list[int] = []
    ranges = {}
    for split, files in splits.items():
        labelled = [(path, label_of[name]) for name, class_files in files.items() for path in class_files]
        labelled.sort(key=lambda pair: _shuffle_key(pair[0]))
        ranges[split] = slice(len(paths), len(paths) + len(labelled))
        paths += [path for path, _ in labelled]
        labels += [label for _, label in labelled]
    without_images = set(range(len(names))) - set(labels[ranges["train"]])
    if without_images:
        name = names[min(without_images)]
        if any(files.get(name) for files in splits.values()):
            hint = "add some; its only images are used for testing or validation"
        else:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            hint = f"add some, or remove the folder of this class; image files end in {suffixes}"
        raise DataError(f"{printable(folder)} has no training images of the class {printable(name)}", hint=hint)
    return _Listing(names, tuple(paths), np.array(labels, np.int64), ranges)
