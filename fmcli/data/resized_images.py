"""Resize image files to one size and keep the result in the cache as one array."""

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

from fmcli.data.arrays import MAX_IN_MEMORY_BYTES
from fmcli.data.background import Background
from fmcli.data.cache import CacheError, cached_file
from fmcli.data.image_files import ImageReader, classify_background_of_files, read_image_header
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.errors import DataError, Remedy, printable

_BACKGROUND_SAMPLES = 256
_MAX_NAMED = 3  # number of unreadable files in an error message
_CACHE_VERSION = 2  # increment this number whenever images are resized differently, so that caches are written again
_SET_SIZE = Remedy("set", "'data.size=[32,32]'")

Resized = tuple[NDArray[np.uint8], Background]
_Shape = tuple[int, int, int]


def resize_image_files(
    folder: Path, paths: Sequence[str], *, size: tuple[int, int] | None, channels: int | None
) -> Resized:
    """Read image files and resize them to one size in proportion, as `fmcli predict` does.

    Args:
        folder: Folder of the image files.
        paths: Path of each image file, relative to the folder.
        size: (height, width) to resize to. Default: the size of the files, which must all have the same size.
        channels: 1 or 3. Default: 1 if all images are grey, otherwise 3.

    Returns:
        Images, uint8 (N, C, H, W), in memory, or mapped from the cache if they are large; and the background of the
        image files before padding.

    Raises:
        DataError: An image file cannot be read; sizes differ and `size` is None; or the images do not fit into memory
            or the cache.
    """
    arguments = json.dumps([os.fspath(folder.resolve()), size, channels, _CACHE_VERSION])
    name = hashlib.sha256(arguments.encode(errors="surrogateescape")).hexdigest()[:32]
    state = _state_of(folder, paths)
    files = [folder / path for path in paths]

    def write(target: BinaryIO) -> None:
        _write(files, _common_shape(files, size, channels), target)

    try:
        cached = cached_file(name, state, write)
    except CacheError as error:
        return _resize_in_memory(folder, files, _common_shape(files, size, channels), error)
    try:
        return _open_cached(cached)
    except FileNotFoundError:  # another process found other files in the folder and removed our cached array
        return _open_cached(cached_file(name, state, write))


def _resize_in_memory(folder: Path, files: Sequence[Path], shape: _Shape, problem: CacheError) -> Resized:
    if len(files) * math.prod(shape) > MAX_IN_MEMORY_BYTES:
        raise DataError(
            f"the images of {printable(folder)} do not fit into memory, and the cache cannot be written: "
            f"{printable(problem)}",
            hint="set XDG_CACHE_HOME to a folder on a disk with enough space",
        ) from problem
    content = io.BytesIO()
    _write(files, shape, content)
    content.seek(0)
    return np.asarray(np.lib.format.read_array(content)), _parse_background(content.read())


def _state_of(folder: Path, paths: Sequence[str]) -> str:
    """Return a digest that changes whenever an image file changes."""
    state = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(os.path.join(folder, path))
        except OSError as error:
            raise DataError(
                f"cannot read {printable(folder / path)}: {error.strerror}", hint="remove the file"
            ) from error
        stamp = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0"
        state.update(stamp.encode(errors="surrogateescape"))
    return state.hexdigest()[:32]


def _open_cached(path: Path) -> Resized:
    """Read a file that `_write` wrote."""
    # Copy on write: torch wants a writable array, although no code writes to it.
    array = np.lib.format.open_memmap(path, mode="c")
    with path.open("rb") as file:
        file.seek(array.offset + array.nbytes)
        background = _parse_background(file.read())
    return (np.array(array) if array.nbytes <= MAX_IN_MEMORY_BYTES else array), background


def _parse_background(word: bytes) -> Background:
    return next(background for background in get_args(Background) if background.encode() == word)


def _common_shape(files: Sequence[Path], size: tuple[int, int] | None, channels: int | None) -> _Shape:
    """Return the shape (C, H, W) to resize to."""
    headers = {} if size and channels else {file: read_image_header(file) for file in files}
    if channels is None:
        channels = 1 if all(header.is_grey for header in headers.values()) else 3
    if size is None:
        example_of = {header.size: file for file, header in headers.items()}
        if len(example_of) > 1:
            small, large = min(example_of), max(example_of)
            raise DataError(
                f"the images differ in size: {printable(example_of[small])} is {small[1]}×{small[0]}, "
                f"{printable(example_of[large])} is {large[1]}×{large[0]} (width × height)",
                hint="choose one size to resize them to: size = [32, 32] (height, width) in the recipe's [data]",
                remedies=[_SET_SIZE],
            )
        [size] = example_of
    if math.prod(size) * channels > MAX_IMAGE_VALUES:
        raise DataError(
            f"images of {size[1]}×{size[0]} pixels and {channels} channels are too large: "
            f"the limit is {MAX_IMAGE_VALUES} values",
            hint="choose a smaller size: size = [32, 32] (height, width) in the recipe's [data]",
            remedies=[_SET_SIZE],
        )
    return channels, *size


def _write(files: Sequence[Path], shape: _Shape, target: BinaryIO) -> None:
    """Write all images as a `.npy` file, followed by the name of the background."""
    background = classify_background_of_files(files[:: max(len(files) // _BACKGROUND_SAMPLES, 1)], shape[0])
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
    np.lib.format.write_array_header_1_0(target, header)
    unreadable = []
    for image in ImageReader(shape, background, "never").read(map(os.fspath, files)):
        if image.pixels is None:
            unreadable.append(f"{printable(image.name)}: {image.error}")
        else:
            target.write(image.pixels.tobytes())
    if unreadable:
        more = f"; and {len(unreadable) - _MAX_NAMED} more" if len(unreadable) > _MAX_NAMED else ""
        raise DataError(
            f"{len(unreadable)} of {len(files)} image files cannot be read: {'; '.join(unreadable[:_MAX_NAMED])}{more}",
            hint="remove these files, or get new copies",
        )
    target.write(background.encode())
