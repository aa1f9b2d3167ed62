"""Many images fitted to one size: done once, and kept in the cache as one array."""

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
from numpy.typing import NDArray

from fmcli.data.background import Background
from fmcli.data.cache import CacheError, cached_file
from fmcli.data.idx import MAX_IN_MEMORY_BYTES
from fmcli.data.image_files import ImageReader, classify_background_of_files, read_image_header
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.errors import DataError, printable

_BORDERS = 256  # images that are looked at for what lies behind them
_MOST_NAMED = 3  # unreadable images in an error
_VERSION = 2  # of how images are fitted: arrays in the cache are made again when it changes

Fitted = tuple[NDArray[np.uint8], Background]
_BACKGROUNDS: tuple[Background, ...] = get_args(Background)
_Shape = tuple[int, int, int]


def resize_image_files(
    folder: Path, paths: Sequence[str], *, size: tuple[int, int] | None, channels: int | None
) -> Fitted:
    """Return images as images of one size, in which they keep their proportions, as `predict` fits them.

    Args:
        folder: What their paths are relative to.
        paths: Of each.
        size: (height, width) of the images; by default the images' own, which must all be the same.
        channels: 1 or 3; by default 1 where all images are grey.

    Returns:
        uint8 (N, C, H, W), in memory, or mapped from the cache where they are many; and what lies behind most of the
        images, before they were fitted.

    Raises:
        DataError: An image cannot be read, they differ in size and none is given, or there is no room for the images.
    """
    asked = json.dumps([os.fspath(folder.resolve()), size, channels, _VERSION])
    name = hashlib.sha256(asked.encode(errors="surrogateescape")).hexdigest()[:32]
    state = _state_of(folder, paths)

    def make(file: BinaryIO) -> None:
        places = [folder / path for path in paths]
        _write(places, _shape_of(places, size, channels), file)

    try:
        made = cached_file(name, state, make)
    except CacheError as error:
        places = [folder / path for path in paths]
        return _fit_in_memory(folder, places, _shape_of(places, size, channels), error)
    try:
        return _open_made(made)
    except FileNotFoundError:  # removed by another process since, for which the images had changed
        return _open_made(cached_file(name, state, make))


def _fit_in_memory(folder: Path, places: Sequence[Path], shape: _Shape, problem: CacheError) -> Fitted:
    if len(places) * math.prod(shape) > MAX_IN_MEMORY_BYTES:
        raise DataError(
            f"the images of {printable(folder)} are too many for memory, and cannot be kept in the cache: "
            f"{printable(problem)}",
            hint="name a folder where there is room with XDG_CACHE_HOME",
        ) from problem
    content = io.BytesIO()
    _write(places, shape, content)
    content.seek(0)
    return np.asarray(np.lib.format.read_array(content)), _parse_background(content.read())


def _state_of(folder: Path, paths: Sequence[str]) -> str:
    """Return what changes whenever an image does."""
    state = hashlib.sha256()
    for path in paths:
        try:
            now = os.stat(os.path.join(folder, path))
        except OSError as error:
            raise DataError(f"cannot read {printable(folder / path)}: {error.strerror}", hint="remove it") from error
        state.update(f"{path}\0{now.st_size}\0{now.st_mtime_ns}\0{now.st_ctime_ns}\0".encode(errors="surrogateescape"))
    return state.hexdigest()[:32]


def _open_made(path: Path) -> Fitted:
    """Open what `_write` wrote."""
    array = np.lib.format.open_memmap(path, mode="c")  # writable in memory, where nobody writes: torch wants that
    with path.open("rb") as file:
        file.seek(array.offset + array.nbytes)
        background = _parse_background(file.read())
    return (np.array(array) if array.nbytes <= MAX_IN_MEMORY_BYTES else array), background


def _parse_background(word: bytes) -> Background:
    for background in _BACKGROUNDS:
        if word == background.encode():
            return background
    raise ValueError("nothing is said of what lies behind")


def _shape_of(places: Sequence[Path], size: tuple[int, int] | None, channels: int | None) -> _Shape:
    """Return (C, H, W) of the images: as asked for, or what the images have in common."""
    headers = {} if size and channels else {path: read_image_header(path) for path in places}
    if channels is None:
        channels = 1 if all(header.is_grey for header in headers.values()) else 3
    if size is None:
        sizes = {header.size: path for path, header in headers.items()}
        if len(sizes) > 1:
            (one, first), (other, second) = min(sizes.items()), max(sizes.items())
            raise DataError(
                f"images differ in size: {printable(first)} is {one[1]}×{one[0]}, {printable(second)} "
                f"{other[1]}×{other[0]} (width × height)",
                hint="say to what they are to be fitted: size = [32, 32] in a recipe's [data], "
                "or --set 'data.size=[32,32]'",
            )
        [size] = sizes
    if math.prod(size) * channels > MAX_IMAGE_VALUES:
        raise DataError(
            f"images of {size[1]}×{size[0]} pixels are too large: more than {MAX_IMAGE_VALUES} numbers",
            hint="fit them to smaller ones: size = [32, 32] in a recipe's [data], or --set 'data.size=[32,32]'",
        )
    return channels, *size


def _write(places: Sequence[Path], shape: _Shape, file: BinaryIO) -> None:
    """Write all images as a `.npy` file, one after another, and behind it what lies behind most of them."""
    background = classify_background_of_files(places[:: max(len(places) // _BORDERS, 1)], shape[0])
    reader = ImageReader(shape, background, "never")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(places), *shape)}
    np.lib.format.write_array_header_1_0(file, header)
    wrong = []
    for image in reader.read(map(os.fspath, places)):
        if image.pixels is None:
            wrong.append(f"{printable(image.name)}: {image.error}")
        else:
            file.write(image.pixels.tobytes())
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise DataError(
            f"{len(wrong)} of {len(places)} images cannot be read: {'; '.join(wrong[:_MOST_NAMED])}{more}",
            hint="remove them, or get them again",
        )
    file.write(background.encode())
