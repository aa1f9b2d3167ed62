"""A folder of pictures, one subfolder a class: found, fitted to one size, and kept in the cache as one array."""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fmcli.data.cache import CacheError, made_once
from fmcli.data.idx import LARGEST_IN_MEMORY
from fmcli.data.image_set import LARGEST_IMAGE, ImageSet, check_image_set
from fmcli.data.pictures import PictureReader, background_of_pictures, find_pictures, header_of_picture
from fmcli.errors import DataError, printable

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test",),
    "validation": ("validation", "val", "valid"),
}
TEST_EVERY = 5
"""Where a folder has no `train` and `test`, so many-th pictures of each class are for testing."""
_BORDERS = 256  # pictures that are looked at for what lies behind them
_MOST_NAMED = 3  # unreadable pictures in an error
_VERSION = 1  # of how pictures are fitted: arrays in the cache are made again when it changes

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Listing:
    """The pictures of a folder, split by split, in the order in which their images are kept.

    Args:
        folder: What the paths are relative to.
        class_names: In label order.
        paths: Of every picture.
        labels: int64, likewise.
        splits: Where each split begins and ends.
    """

    folder: Path
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: Mapping[str, slice]

    def __iter__(self) -> Iterator[Path]:
        return (self.folder / path for path in self.paths)


def read_picture_folder(
    folder: Path, *, classes: tuple[str, ...] | None, size: tuple[int, int] | None, channels: int | None
) -> dict[str, ImageSet]:
    """Read `FOLDER/train/CLASS/…` and `FOLDER/test/CLASS/…`, or `FOLDER/CLASS/…`.

    Pictures are taken in an order that their names alone decide and that mixes the classes. They are fitted to one
    size as `predict` fits them, which keeps their proportions.

    Args:
        folder: Holds `train` and `test`, perhaps `validation`, and in each a folder for every class; or the classes'
            folders at once, of whose pictures every fifth is for testing.
        classes: Their names in label order; by default sorted.
        size: (height, width) of the images; by default the pictures' own, which must all be the same.
        channels: 1 or 3; by default 1 where all pictures are grey.

    Returns:
        The splits that are there, `train` and `test` among them.

    Raises:
        DataError: There are no such folders, a picture cannot be read, or pictures differ in size and none is given.
    """
    listing = _list_pictures(folder, classes)
    pixels = _fitted(listing, size, channels)
    return {
        split: check_image_set(
            pixels[rows], listing.labels[rows], listing.class_names, where=f"{printable(folder)} ({split})"
        )
        for split, rows in listing.splits.items()
    }


# --- which pictures --------------------------------------------------------------------------------------


def _list_pictures(folder: Path, classes: tuple[str, ...] | None) -> _Listing:
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} is not a folder", hint="data.source = 'folder:DIR' names one of pictures")
    places = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    if places["train"] is None:
        names = _class_names(folder, classes)
        found = {name: _pictures_of(folder, folder / name) for name in names}
        listed = {
            "train": {
                name: [path for at, path in enumerate(paths) if at % TEST_EVERY] for name, paths in found.items()
            },
            "test": {name: paths[::TEST_EVERY] for name, paths in found.items()},
        }
    else:
        names = _class_names(places["train"], classes)
        listed = {
            split: {name: _pictures_of(folder, place / name) for name in _class_names(place, names)}
            for split, place in places.items()
            if place is not None
        }
        if "test" not in listed:
            raise DataError(
                f"{printable(folder)} has pictures to train on, and no folder 'test'",
                hint=f"add one; or take every {TEST_EVERY}th for testing: data.source = 'folder:{places['train']}'",
            )
    return _in_order(folder, names, listed)


def _class_names(place: Path, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes whose folders a place holds, in label order."""
    found = sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(
            f"{printable(place)} has no folders", hint="put the pictures of each class into a folder of its name"
        )
    if wanted is not None and set(found) - set(wanted):
        extra = ", ".join(printable(name) for name in sorted(set(found) - set(wanted)))
        raise DataError(
            f"{printable(place)} has folders that are none of the classes: {extra}",
            hint="a class needs a folder in train, and to be among data.classes where those are given",
        )
    return tuple(found) if wanted is None else tuple(name for name in wanted if name in found)


def _pictures_of(folder: Path, place: Path) -> list[str]:
    """Return a class's pictures, relative to the folder, mixed in a way that their names alone decide."""
    paths = [path.relative_to(folder).as_posix() for path in find_pictures(place)]
    return sorted(paths, key=_mixed)


def _mixed(path: str) -> bytes:
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
        raise DataError(
            f"{printable(folder)} has no pictures of {printable(names[min(empty)])} to train on",
            hint="put some there, or remove the class's folder",
        )
    return _Listing(folder, names, tuple(paths), np.array(labels, np.int64), splits)


# --- their pixels ----------------------------------------------------------------------------------------


def _fitted(listing: _Listing, size: tuple[int, int] | None, channels: int | None) -> NDArray[np.uint8]:
    """Return all pictures, uint8 (N, C, H, W): in memory, or mapped from the cache where they are many."""
    asked = json.dumps([os.fspath(listing.folder.resolve()), size, channels, _VERSION])
    state = hashlib.sha256()
    for path, place in zip(listing.paths, listing, strict=True):
        now = place.stat()
        state.update(f"{path}\0{now.st_size}\0{now.st_mtime_ns}\0".encode(errors="surrogateescape"))

    def make(file: BinaryIO) -> None:
        shape = _shape_of(listing, size, channels)
        _write(listing, shape, file)

    name = hashlib.sha256(asked.encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        made = made_once(name, state.hexdigest()[:32], make)
    except CacheError:
        content = io.BytesIO()
        make(content)
        content.seek(0)
        return np.asarray(np.lib.format.read_array(content))
    array = np.lib.format.open_memmap(made, mode="c")  # writable in memory, where nobody writes: torch wants that
    return np.array(array) if array.nbytes <= LARGEST_IN_MEMORY else array


def _shape_of(listing: _Listing, size: tuple[int, int] | None, channels: int | None) -> Shape:
    """Return (C, H, W) of the images: as asked for, or what the pictures have in common."""
    if size is not None and channels is not None:
        return channels, *size
    headers = {path: header_of_picture(path) for path in listing}
    if channels is None:
        channels = 1 if all(header.is_grey for header in headers.values()) else 3
    if size is None:
        sizes = {header.size: path for path, header in headers.items()}
        if len(sizes) > 1:
            (one, first), (other, second) = min(sizes.items()), max(sizes.items())
            raise DataError(
                f"pictures differ in size: {printable(first)} is {one[1]}×{one[0]}, {printable(second)} "
                f"{other[1]}×{other[0]} (width × height)",
                hint="say to what they are to be fitted: --set data.size=[32,32], or size = [HEIGHT, WIDTH] in [data]",
            )
        [size] = sizes
    if math.prod(size) * channels > LARGEST_IMAGE:
        raise DataError(
            f"images of {size[1]}×{size[0]} pixels are too large: more than {LARGEST_IMAGE} numbers",
            hint="fit them to a smaller one: --set data.size=[32,32]",
        )
    return channels, *size


def _write(listing: _Listing, shape: Shape, file: BinaryIO) -> None:
    """Write all pictures as a `.npy` file, one after another."""
    every = max(len(listing.paths) // _BORDERS, 1)
    background = background_of_pictures([listing.folder / path for path in listing.paths[::every]], shape[0])
    reader = PictureReader(shape, background, "never")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(listing.paths), *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    wrong = []
    for picture in reader.read(map(os.fspath, listing)):
        if picture.pixels is None:
            wrong.append(f"{printable(picture.name)}: {picture.error}")
        else:
            file.write(picture.pixels.tobytes())
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise DataError(
            f"{len(wrong)} of {len(listing.paths)} pictures cannot be read: {'; '.join(wrong[:_MOST_NAMED])}{more}",
            hint="remove them, or get them again",
        )
