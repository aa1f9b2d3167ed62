"""NumPy's `.npz`, as MedMNIST and Keras publish images; never a pickle.

References:
    NumPy, "The NPY format": a zip archive of `.npy` files, each a short header and the numbers.
    Yang et al., "MedMNIST v2", Scientific Data 10, 2023: the names `train_images`, `train_labels` and so on.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fmcli.data.cache import unpack_to_cache
from fmcli.data.idx import ANY_RATIO_BYTES, MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO, MAX_IN_MEMORY_BYTES, to_images
from fmcli.errors import DataError, printable
from fmcli.storage.reading import NPY_HEADER_START_BYTES, check_npy_header, check_regular_file

NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
}
"""What the images and labels of a split are called: by MedMNIST, and by Keras."""
MAX_READ_BYTES = 1 << 20  # bytes that are read at once, as the list of an archive's files is


class _Header(NamedTuple):
    """What an array says of itself.

    Args:
        size: How many bytes come before its numbers.
        shape: Of the array.
        dtype: Of a number.
    """

    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_npz(path: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[Any]]]:
    """Read the images and labels of each split that an archive has.

    Args:
        path: With arrays named as in `NAMES`: images uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), labels integers
            (N,) or (N, 1).

    Returns:
        Images, uint8 (N, C, H, W), which stay on the disk where they are many, and labels (N,).

    Raises:
        DataError: It is missing, damaged, too large for its size, or holds something else.
    """
    with _opened(path) as archive:
        there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        pairs = {}
        for split, names in NAMES.items():
            for of_images, of_labels in names:
                if of_images in there and of_labels in there:
                    images = _array(path, archive, there[of_images], may_stay=True)
                    labels = _array(path, archive, there[of_labels], may_stay=False)
                    pairs[split] = to_images(images, where=f"{path}: {of_images}"), _labels(path, of_labels, labels)
                    break
    if not pairs:
        found = ", ".join(printable(name) for name in sorted(there)[:8]) or "nothing"
        raise DataError(
            f"{printable(path)} holds {found}, and no images that are known by their name",
            hint="expected train_images, train_labels, test_images, test_labels; or x_train, y_train, x_test, y_test",
        )
    return pairs


def _labels(path: Path, name: str, labels: NDArray[Any]) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or labels.min(initial=0) < 0:
        raise DataError(
            f"{printable(path)}: {name} holds {labels.dtype} of shape {labels.shape}; labels are one class an image, "
            "from 0"
        )
    return labels


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Give an open archive, and say what is wrong with one that cannot be read."""
    try:
        check_regular_file(path)
        with path.open("rb") as file, zipfile.ZipFile(cast(BinaryIO, _InSmallParts(file))) as archive:
            yield archive
    except DataError:
        raise
    except Exception as error:  # zip archives are damaged in many ways, and headers parsed as Python in more
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason or type(error).__name__)}",
            hint="the file is missing or damaged: get it again",
        ) from error


class _InSmallParts:
    """A file that is never read much of at once, as `zipfile` would read a long list of files."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or a comment at the end.

        Raises:
            ValueError: They are more than an archive of arrays needs.
        """
        if size > MAX_READ_BYTES:
            raise ValueError(f"its list of files is larger than {MAX_READ_BYTES} bytes")
        return self._file.read(size if size >= 0 else MAX_READ_BYTES)


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, may_stay: bool) -> NDArray[Any]:
    """Return an array of the archive, in memory, or where it may stay on the disk and is large, mapped from there."""
    _check_promise(path, info)
    with archive.open(info) as file:
        header = _parse_header(path, info, file)
        if not may_stay or info.file_size <= MAX_IN_MEMORY_BYTES:
            content = bytearray()
            while chunk := file.read(MAX_READ_BYTES):
                content += chunk
            return np.frombuffer(content, header.dtype, math.prod(header.shape)).reshape(header.shape)
    unpacked = _unpacked(path, archive, info)
    # Writable in memory, where nobody writes: torch wants that.
    return np.memmap(unpacked, header.dtype, mode="c", offset=header.size, shape=header.shape)


def _unpacked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Path:
    def unpack(file: BinaryIO) -> None:
        with archive.open(info) as packed:
            while chunk := packed.read(MAX_READ_BYTES):
                file.write(chunk)

    return unpack_to_cache(path, unpack, part=info.filename)


def _check_promise(path: Path, info: zipfile.ZipInfo) -> None:
    """Refuse too many bytes, and what NumPy never packs so, before any memory is taken."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is packed in a way that NumPy does not write")
    lies = info.file_size > ANY_RATIO_BYTES and info.file_size > MAX_COMPRESSION_RATIO * min(
        info.compress_size, path.stat().st_size
    )
    if lies or info.file_size > MAX_ARRAY_BYTES:
        raise DataError(
            f"{printable(path)}: {printable(info.filename)} promises {info.file_size} bytes, and has "
            f"{info.compress_size}; the limits are {MAX_ARRAY_BYTES}, and {MAX_COMPRESSION_RATIO} times what it has",
            hint="the file is damaged: get it again",
        )


def _parse_header(path: Path, info: zipfile.ZipInfo, file: IO[bytes]) -> _Header:
    """Read what comes before the numbers of an array; ValueError where it is no array."""
    check_npy_header(file.read(NPY_HEADER_START_BYTES))
    file.seek(0)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read is None:
        raise ValueError(f"{info.filename} is of a version that plain numbers do not need")
    shape, columns_first, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python's objects, which are never read")
    size = file.tell()
    if info.file_size != size + dtype.itemsize * math.prod(shape):
        raise ValueError(f"{info.filename} is not as long as its shape {shape} says")
    if columns_first and len(shape) > 1:
        raise DataError(
            f"{printable(path)}: the columns of {printable(info.filename)} come first, as in Fortran",
            hint="save its arrays in rows: numpy.ascontiguousarray(array)",
        )
    return _Header(size, shape, dtype)
