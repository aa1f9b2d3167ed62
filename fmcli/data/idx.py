"""Read IDX files, the format of MNIST and similar datasets, gzipped or not.

References:
    Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": file formats.
"""

import gzip
import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcli.data.cache import unpack_to_cache
from fmcli.errors import DataError, FmcliError, printable
from fmcli.storage.reading import open_nonblocking

MAX_ARRAY_BYTES = 8 << 30  # largest array that is compressed or read into memory
MAX_IN_MEMORY_BYTES = 256 << 20  # larger arrays of images are mapped from a file
MAX_COMPRESSION_RATIO = 200  # two-colour drawings reach 100, decompression bombs 1000
ANY_RATIO_BYTES = 128 << 20  # smaller arrays may have any compression ratio
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK_BYTES = 1 << 24
_DAMAGED_HINT = "the file is damaged; get a new copy"


class _Header(NamedTuple):
    """Header of an IDX file."""

    content: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        """Number of bytes that must follow the header."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def claimed_bytes(self) -> int:
        """Like `data_bytes`, but a 0 in the shape counts as 1, so that a 0 does not hide a huge side."""
        return self.dtype.itemsize * math.prod(side or 1 for side in self.shape)


def read_idx(path: Path) -> tuple[NDArray[Any], memoryview]:
    """Read an IDX file into memory.

    Args:
        path: IDX file, gzipped if its name ends in `.gz`.

    Returns:
        The array, and the unpacked content of the whole file.

    Raises:
        DataError: The file is missing, cut short, too long, or not IDX.
    """
    unpacked = io.BytesIO()
    with _open(path) as (file, header):
        _check_limit(path, header)
        _unpack(path, file, header, unpacked)
    content = unpacked.getbuffer().toreadonly()
    array = np.frombuffer(content, dtype=header.dtype, offset=len(header.content))
    return array.reshape(header.shape), content


def open_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file, or map it if it is large. Unpack a large gzipped file to the cache first.

    Args:
        path: IDX file, gzipped if its name ends in `.gz`.

    Raises:
        DataError: See `read_idx`; or there is no room to unpack the file.
    """
    with _open(path) as (file, header):
        if header.claimed_bytes <= MAX_IN_MEMORY_BYTES:
            return read_idx(path)[0]
        if isinstance(file, gzip.GzipFile):
            _check_limit(path, header)
            return open_idx(unpack_to_cache(path, lambda target: _unpack(path, file, header, target)))
        start = len(header.content)
        _check_size(path, header, path.stat().st_size - start)
        # Copy on write: torch wants a writable array, although no code writes to it.
        return np.memmap(path, header.dtype, mode="c", offset=start, shape=header.shape)


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO | gzip.GzipFile, _Header]]:
    """Open an IDX file. Yield the file, positioned after the header, and the checked header."""
    with explain_read_errors(path), open_nonblocking(path) as packed:
        file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
        header = _parse_header(file, path)
        _check_ratio(path, header.claimed_bytes, packed_bytes=os.fstat(packed.fileno()).st_size)
        yield file, header


@contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn errors inside the block into a DataError with the path of the file."""
    try:
        yield
    except FmcliError:
        raise
    except Exception as error:  # damaged archives, and headers that NumPy parses as Python, raise many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}",
            hint="check the path; if the file is damaged, get a new copy",
        ) from error


def _parse_header(file: BinaryIO | gzip.GzipFile, path: Path) -> _Header:
    start = file.read(4)
    if len(start) != 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES or not 1 <= start[3] <= 4:
        raise DataError(f"{printable(path)} is not an IDX file: the first bytes are {start.hex() or 'missing'}")
    sides = file.read(4 * start[3])
    if len(sides) != 4 * start[3]:
        raise DataError(f"{printable(path)} ends inside the header", hint=_DAMAGED_HINT)
    return _Header(start + sides, np.dtype(_DTYPES[start[2]]), struct.unpack(f">{len(sides) // 4}I", sides))


def _check_ratio(path: Path, claimed_bytes: int, *, packed_bytes: int) -> None:
    """Refuse a header that claims more bytes than the file can have, before memory is allocated."""
    gzipped = path.suffix == ".gz"
    if claimed_bytes > ANY_RATIO_BYTES and claimed_bytes > (MAX_COMPRESSION_RATIO if gzipped else 1) * packed_bytes:
        limit = f"; the limit is {MAX_COMPRESSION_RATIO} times the packed size" if gzipped else ""
        raise DataError(
            f"the header of {printable(path)} claims {claimed_bytes} bytes, but the file has {packed_bytes}{limit}",
            hint=f"{_DAMAGED_HINT}; or unpack it with gunzip if you trust it" if gzipped else _DAMAGED_HINT,
        )


def _check_limit(path: Path, header: _Header) -> None:
    if header.claimed_bytes > MAX_ARRAY_BYTES:
        raise DataError(
            f"the header of {printable(path)} claims {header.claimed_bytes} bytes; the limit is {MAX_ARRAY_BYTES}",
            hint="unpack it with gunzip if you trust it",
        )


def _check_size(path: Path, header: _Header, found: int) -> None:
    expected = header.data_bytes
    if found != expected:
        raise DataError(
            f"{printable(path)} has {f'more than {expected}' if found > expected else found} bytes of data; "
            f"expected {expected} for shape {header.shape}",
            hint=_DAMAGED_HINT,
        )


def _unpack(path: Path, file: BinaryIO | gzip.GzipFile, header: _Header, target: BinaryIO) -> None:
    """Write the header and the rest of a file in chunks, so that a false header does not allocate memory."""
    chunk: bytes = header.content
    found = -len(chunk)
    while chunk and found <= header.data_bytes:
        target.write(chunk)
        found += len(chunk)
        with explain_read_errors(path):
            chunk = file.read(_CHUNK_BYTES)
    _check_size(path, header, found)


def check_labels(array: NDArray[Any], *, where: object) -> NDArray[Any]:
    """Return an array of labels after checking it.

    Args:
        array: Integers from 0, (N,).
        where: Name of the array in error messages.

    Raises:
        DataError: The dtype or shape is wrong, or a number is negative.
    """
    if array.ndim != 1 or array.dtype.kind not in "ui" or array.min(initial=0) < 0:
        raise DataError(
            f"{printable(where)} does not contain labels: expected integers from 0 of shape (N,), "
            f"found {array.dtype} of shape {array.shape}"
        )
    return array


def to_images(array: NDArray[Any], *, where: object) -> NDArray[np.uint8]:
    """Return an array of images as uint8 (N, C, H, W).

    Args:
        array: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3.
        where: Name of the array in error messages.

    Raises:
        DataError: The dtype or shape is wrong, or the array is empty.
    """
    if array.dtype != np.uint8:
        raise DataError(f"{printable(where)} has dtype {array.dtype}; images must be uint8 (0 to 255)")
    if array.size == 0:
        raise DataError(f"{printable(where)} has no images: the shape is {array.shape}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        images = array.transpose(0, 3, 1, 2)
        return images if isinstance(array, np.memmap) else np.ascontiguousarray(images)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise DataError(
        f"{printable(where)} has shape {array.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
        "channels"
    )
