"""A folder of images to train on, with a folder for each class."""

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
"""What the folder of a split may be called, in large or small letters."""
TEST_EVERY = 5
"""Where a folder has no `train` and `test`, so many-th images of each class are for testing."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """The images of a folder, split by split, in the order in which their images are kept.

    Args:
        class_names: In label order.
        paths: Of every image, relative to the folder.
        labels: int64, likewise.
        splits: Where each split begins and ends.
    """

    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: Mapping[str, slice]


def read_image_folder(
    folder: Path, *, classes: tuple[str, ...] | None, size: tuple[int, int] | None, channels: int | None
) -> dict[str, ImageSet]:
    """Read `FOLDER/train/CLASS/…` and `FOLDER/test/CLASS/…`, or `FOLDER/CLASS/…`.

    What is hidden, or lies beside `train` and `test`, is left alone. Images are taken in an order that
    their names alone decide and that mixes the classes; they are fitted to one size as `resize_image_files` says.

    Args:
        folder: Holds `train` and `test`, perhaps `validation`, and in each a folder for every class; or the classes'
            folders at once, of whose images every fifth is for testing.
        classes: Their names in label order; by default sorted.
        size: (height, width) of the images; by default the images' own, which must all be the same.
        channels: 1 or 3; by default 1 where all images are grey.

    Returns:
        The splits that are there, `train` and `test` among them.

    Raises:
        DataError: There are no such folders, an image cannot be read, or images differ in size and none is given.
    """
    listing = _list_image_files(folder, classes)
    pixels, background = resize_image_files(folder, listing.paths, size=size, channels=channels)
    sets = {}
    for split, rows in listing.splits.items():
        where = f"{printable(folder)} ({split})"
        images = check_image_set(pixels[rows], listing.labels[rows], listing.class_names, where=where)
        sets[split] = replace(images, background=background)  # not that of the borders that fitting has added
    return sets


def _list_image_files(folder: Path, classes: tuple[str, ...] | None) -> _Listing:
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} is not a folder", hint="data.source = 'folder:DIR' names one of images")
    places = _split_places(folder)
    if "train" not in places:
        names = _class_names(folder, classes)
        found = {name: sorted(_image_files_of(folder, folder / name), key=_mixed) for name in names}
        listed = {
            "train": {
                name: [path for at, path in enumerate(paths) if at % TEST_EVERY] for name, paths in found.items()
            },
            "test": {name: paths[::TEST_EVERY] for name, paths in found.items()},
        }
    else:
        names = _class_names(places["train"], classes)
        for split in places:
            _refuse_other_classes(places[split], names)
        listed = {
            split: {name: _image_files_of(folder, place / name) for name in names if (place / name).is_dir()}
            for split, place in places.items()
        }
        if "test" not in listed:
            raise DataError(
                f"{printable(folder)} has images to train on, and no folder 'test'",
                hint=f"add one; or take every {TEST_EVERY}th for testing: "
                f"data.source = 'folder:{printable(places['train'])}'",
            )
    return _in_order(folder, names, listed)


def _split_places(folder: Path) -> dict[str, Path]:
    """Return the folders of splits; none where `train` alone is there and has images itself, and so is a class."""
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    found: dict[str, Path] = {}
    for place in _folders_in(folder):
        split = split_of.get(place.name.lower(), "")
        if split in found:
            raise DataError(
                f"{printable(found[split])} and {printable(place)} are of one split", hint="put them together"
            )
        if split:
            found[split] = place
    if found and "train" not in found:
        [place] = list(found.values())[:1]
        raise DataError(
            f"{printable(folder)} has the folder {printable(place.name)}, and no folder 'train'",
            hint="put the images to train on into one; or, if that is a class, call it otherwise",
        )
    if not found or _folders_in(found["train"]):
        return found
    if len(found) > 1:
        raise DataError(
            f"{printable(found['train'])} has no folders, and so no classes",
            hint="put the images of each class into a folder of its name, in train and in test",
        )
    return {}


def _folders_in(place: Path) -> list[Path]:
    try:
        found = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
        return sorted(found, key=lambda path: path.name)  # paths themselves have another order on Windows
    except OSError as error:
        raise DataError(f"cannot read {printable(place)}: {error.strerror}") from error


def _class_names(place: Path, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes whose folders a place of images to train on holds, in label order."""
    found = tuple(path.name for path in _folders_in(place))
    if not found:
        raise DataError(
            f"{printable(place)} has no folders", hint="put the images of each class into a folder of its name"
        )
    for name in found:
        if not name.isprintable() or name.encode(errors="replace").decode() != name:
            raise DataError(f"{printable(place / name)}: a class's name must be printable UTF-8", hint="rename it")
    missing = [name for name in wanted or () if name not in found]
    if len(found) == 1 and not missing:
        is_above = len(_folders_in(place / found[0])) > 1
        raise DataError(
            f"{printable(place)} has one folder, {printable(found[0])}, and so one class",
            hint=f"are the classes in there? data.source = 'folder:{printable(place / found[0])}', or move them up"
            if is_above
            else "put the images of each class into a folder of its name: two classes or more",
        )
    if wanted is None:
        return found
    if missing or len(set(wanted)) != len(wanted):
        raise DataError(
            f"{printable(place)} has no folder for the class {printable(missing[0])}"
            if missing
            else "two classes have the same name",
            hint="data.classes names each folder once, in label order",
        )
    _refuse_other_classes(place, wanted)
    return wanted


def _refuse_other_classes(place: Path, names: tuple[str, ...]) -> None:
    other = [printable(path.name) for path in _folders_in(place) if path.name not in names]
    if other:
        raise DataError(
            f"{printable(place)} has folders that are none of the classes: {', '.join(other)}",
            hint="a class needs a folder in train, and to be among data.classes where those are given",
        )


def _image_files_of(folder: Path, place: Path) -> list[str]:
    """Return a class's images, relative to the folder."""
    return [path.relative_to(folder).as_posix() for path in find_image_files(place)]


def _mixed(path: str) -> bytes:
    """Return what to sort images by, so that their names alone decide on an order, which mixes the classes."""
    return hashlib.sha256(os.fsencode(path)).digest()


def _in_order(folder: Path, names: tuple[str, ...], listed: Mapping[str, Mapping[str, Sequence[str]]]) -> _Listing:
    label_of = {name: label for label, name in enumerate(names)}
    paths: list[str] = []
    labels: list[int] = []
    splits = {}
    for split, classes in listed.items():
        mixed = sorted(
            ((path, label_of[name]) for name, own in classes.items() for path in own), key=lambda one: _mixed(one[0])
        )
        splits[split] = slice(len(paths), len(paths) + len(mixed))
        paths += [path for path, _ in mixed]
        labels += [label for _, label in mixed]
    empty = set(range(len(names))) - set(labels[splits["train"]])
    if empty:
        name = names[min(empty)]
        if any(classes.get(name) for classes in listed.values()):
            hint = "put some there: what it has is for testing, or for validation"
        else:
            hint = f"put some there, or remove the class's folder; looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"{printable(folder)} has no images of {printable(name)} to train on", hint=hint)
    return _Listing(names, tuple(paths), np.array(labels, np.int64), splits)
