"""The source `npz:FILE`: an archive of arrays as MedMNIST and Keras publish them, read without pickle.

References:
    NumPy, "The NPY format": a zip archive of `.npy` files, each with a short header and the numbers.
    Yang et al., "MedMNIST v2", Scientific Data 10, 2023: the names `train_images`, `train_labels` and so on.
"""

import io
import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fmcli.data.arrays import (
    ANY_RATIO_BYTES,
    MAX_ARRAY_BYTES,
    MAX_COMPRESSION_RATIO,
    MAX_IN_MEMORY_BYTES,
    explain_read_errors,
    to_images,
)
from fmcli.data.cache import unpack_to_cache
from fmcli.data.sources.base import SourceImages, SourceRequest
from fmcli.errors import DataError, join_names, printable
from fmcli.storage.reading import check_npy_header, check_regular_file

NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
}
"""Names of the image and label arrays of each split: MedMNIST's first, then Keras's."""
_NAMES_HINT = (
    "name the arrays train_images, train_labels, test_images and test_labels; or x_train, y_train, x_test and y_test"
)
MAX_READ_BYTES = 1 << 20  # in one call of `read`


def load(request: SourceRequest) -> SourceImages:
    """Read the images and labels of each split in an archive.

    The arrays are named as in `NAMES`. Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); labels are integers
    (N,) or (N, 1). Large arrays of images are mapped from the cache.

    Raises:
        DataError: The archive is missing or damaged, or claims too much memory.
    """
    path = request.find_path()
    splits = {}
    with _open(path) as archive:
        files = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for split, choices in NAMES.items():
            for images_name, labels_name in choices:
                if images_name in files and labels_name in files:
                    images = _read_array(path, archive, files[images_name], may_map=True)
                    labels = _read_array(path, archive, files[labels_name], may_map=False)
                    if labels.ndim == 2 and labels.shape[1] == 1:
                        labels = labels[:, 0]
                    splits[split] = (to_images(images, where=f"{path}: {images_name}"), labels)
                    break
    found = join_names(list(files)) or "none"
    return SourceImages(path, splits, names_hint=f"{_NAMES_HINT}; arrays found: {found}")


def recognizes(path: Path) -> bool:
    """Return whether a path is a file with the suffix of an archive."""
    return path.suffix == ".npz" and path.is_file()


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive. Turn errors inside the block into a DataError."""
    with explain_read_errors(path):
        check_regular_file(path)
        with path.open("rb") as file, zipfile.ZipFile(cast(BinaryIO, _BoundedFile(file))) as archive:
            yield archive


class _BoundedFile:
    """A file that refuses long reads, because `zipfile` reads the whole list of files in one call."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes. Without a size, as for the comment of the archive, read up to the limit.

        Raises:
            ValueError: The size is above the limit.
        """
        if size > MAX_READ_BYTES:
            raise ValueError(f"the list of files in the archive is larger than {MAX_READ_BYTES} bytes")
        return self._file.read(size if size >= 0 else MAX_READ_BYTES)


def _read_array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, may_map: bool) -> NDArray[Any]:
    """Read an array of the archive. Map a large array from the cache instead, if `may_map`."""
    _check_ratio(path, info)
    with archive.open(info) as file:
        header_bytes, shape, dtype = _parse_header(path, info, file)

    def unpack(target: BinaryIO) -> None:
        with archive.open(info) as packed:
            shutil.copyfileobj(packed, target, MAX_READ_BYTES)

    if not may_map or info.file_size <= MAX_IN_MEMORY_BYTES:
        content = io.BytesIO()
        unpack(content)
        return np.frombuffer(content.getbuffer(), dtype, math.prod(shape), header_bytes).reshape(shape)
    unpacked = unpack_to_cache(path, unpack, part=info.filename)
    # Copy on write: torch wants a writable array, although no code writes to it.
    return np.memmap(unpacked, dtype, mode="c", offset=header_bytes, shape=shape)


def _check_ratio(path: Path, info: zipfile.ZipInfo) -> None:
    """Before reading an array, check the number of bytes that it claims and the compression method."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} has a compression method that NumPy does not write")
    largest = MAX_COMPRESSION_RATIO * min(info.compress_size, path.stat().st_size)
    if info.file_size > MAX_ARRAY_BYTES or info.file_size > max(ANY_RATIO_BYTES, largest):
        raise DataError(
            f"{printable(path)}: the header of {printable(info.filename)} claims {info.file_size} bytes, but the array "
            f"has {info.compress_size} compressed bytes; the limits are {MAX_ARRAY_BYTES} bytes and "
            f"{MAX_COMPRESSION_RATIO} times the compressed size",
            hint="the file is damaged; get a new copy",
        )


def _parse_header(path: Path, info: zipfile.ZipInfo, file: IO[bytes]) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Read the header of an array.

    Returns:
        Length of the header in bytes, and shape and dtype of the array.

    Raises:
        ValueError: The file is not an array of plain numbers.
        DataError: The array is in Fortran order.
    """
    check_npy_header(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    read = readers.get(np.lib.format.read_magic(file))
    if read is None:
        raise ValueError(f"{info.filename} has an unknown .npy format version; arrays of numbers have version 1 or 2")
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} contains Python objects, which are never read")
    size = file.tell()
    if info.file_size != size + dtype.itemsize * math.prod(shape):
        raise ValueError(f"the length of {info.filename} does not match the shape {shape}")
    if is_fortran and len(shape) > 1:
        raise DataError(
            f"{printable(path)}: {printable(info.filename)} is in Fortran order (columns first)",
            hint="save it in C order: numpy.ascontiguousarray(array)",
        )
    return size, shape, dtype
