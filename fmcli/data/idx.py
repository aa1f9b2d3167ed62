"""IDX files, the format of MNIST and its kin, gzipped or not.

References:
    Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": file formats.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmcli.data.cache import unpack_to_cache
from fmcli.errors import DataError, printable
from fmcli.storage.reading import open_nonblocking

MAX_ARRAY_BYTES = 8 << 30  # bytes of what is gzipped, or read into memory: more than this is a header that lies
MAX_IN_MEMORY_BYTES = 256 << 20  # bytes of images; more stay in their file
MAX_COMPRESSION_RATIO = 200  # of a file to its gzipped form; drawings in two colours have a hundred, bombs a thousand
ANY_RATIO_BYTES = 128 << 20  # bytes, which may be gzipped to anything
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24


class _Header(NamedTuple):
    """What an IDX file says of itself."""

    content: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes must follow."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def promise(self) -> int:
        """Likewise, but that a side of 0 does not hide what the others say."""
        return self.dtype.itemsize * math.prod(side or 1 for side in self.shape)


def read_idx(path: Path) -> tuple[NDArray[Any], bytearray]:
    """Read an IDX file.

    Args:
        path: Gzipped where its name ends in `.gz`.

    Returns:
        The array, and the unpacked bytes of the whole file, for digests.

    Raises:
        DataError: The file is missing, cut short, too long, or not IDX.
    """
    with _opened(path) as (file, header):
        _check_limit(path, header)
        content = bytearray(header.content)
        _read_up_to(file, header.size + 1, content)
    start = len(header.content)
    _check_size(path, header, len(content) - start)
    array = np.frombuffer(memoryview(content).toreadonly(), dtype=header.dtype, offset=start)
    return array.reshape(header.shape), content


def open_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file, or where it is large leave it on the disk until used; a gzipped one is unpacked there once.

    Args:
        path: Gzipped where its name ends in `.gz`.

    Raises:
        DataError: As `read_idx`; or there is no room to unpack it.
    """
    with _opened(path) as (file, header):
        if header.promise <= MAX_IN_MEMORY_BYTES:
            return read_idx(path)[0]
        if isinstance(file, gzip.GzipFile):
            _check_limit(path, header)
            return open_idx(unpack_to_cache(path, lambda unpacked: _unpack(path, file, header, unpacked)))
        start = len(header.content)
        _check_size(path, header, path.stat().st_size - start)
        # Writable in memory, where nobody writes: torch wants that.
        return np.memmap(path, header.dtype, mode="c", offset=start, shape=header.shape)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO | gzip.GzipFile, _Header]]:
    """Give an open file behind its header, and what the header says, which can be true."""
    with _reading(path), open_nonblocking(path) as packed:
        file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
        header = _parse_header(file, path)
        _check_promise(path, header.promise, packed_size=os.fstat(packed.fileno()).st_size)
        yield file, header


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: NUL in its name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}",
            hint="the file is missing or damaged: get it again",
        ) from error


def _parse_header(file: BinaryIO | gzip.GzipFile, path: Path) -> _Header:
    start = file.read(4)
    if len(start) != 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES or not 1 <= start[3] <= 4:
        raise DataError(f"{printable(path)} is not an IDX file: it begins with {start.hex() or 'nothing'}")
    sides = file.read(4 * start[3])
    if len(sides) != 4 * start[3]:
        raise DataError(f"{printable(path)} is cut short in its header")
    return _Header(start + sides, np.dtype(_DTYPES[start[2]]), struct.unpack(f">{len(sides) // 4}I", sides))


def _check_promise(path: Path, size: int, *, packed_size: int) -> None:
    """Refuse too many bytes for the file's own size, before any memory is taken."""
    gzipped = path.suffix == ".gz"
    if size > ANY_RATIO_BYTES and size > (MAX_COMPRESSION_RATIO if gzipped else 1) * packed_size:
        limit = f"; the limit is {MAX_COMPRESSION_RATIO} times that" if gzipped else ""
        unless = "; or unpack it with gunzip, if it can be trusted" if gzipped else ""
        raise DataError(
            f"{printable(path)} promises {size} bytes, and has {packed_size}{limit}",
            hint=f"the file is damaged: get it again{unless}",
        )


def _check_limit(path: Path, header: _Header) -> None:
    if header.promise > MAX_ARRAY_BYTES:
        raise DataError(
            f"{printable(path)} promises {header.promise} bytes; the limit is {MAX_ARRAY_BYTES}",
            hint="unpack it with gunzip, if it can be trusted",
        )


def _check_size(path: Path, header: _Header, found: int) -> None:
    if found != header.size:
        raise DataError(
            f"{printable(path)} promises {header.size} bytes of data for shape {header.shape} but holds "
            f"{'more' if found > header.size else found}",
            hint="the file is damaged: get it again",
        )


def _unpack(path: Path, file: gzip.GzipFile, header: _Header, unpacked: BinaryIO) -> None:
    """Write what an open gzipped file holds."""
    chunk: bytes = header.content
    found = -len(chunk)
    while chunk and found <= header.size:
        unpacked.write(chunk)
        found += len(chunk)
        with _reading(path):
            chunk = file.read(_CHUNK)
    _check_size(path, header, found)


def _read_up_to(file: BinaryIO | gzip.GzipFile, size: int, content: bytearray) -> None:
    """Add at most so many bytes to a content, in steps, so that a lying header costs no memory."""
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        content += chunk
        size -= len(chunk)


def to_images(array: NDArray[Any], *, where: object) -> NDArray[np.uint8]:
    """Return an array of images as uint8 (N, C, H, W).

    Args:
        array: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3.
        where: What to call it in errors.

    Raises:
        DataError: It is none of these.
    """
    if array.dtype != np.uint8:
        raise DataError(f"{printable(where)} holds {array.dtype} values; images are uint8, 0 to 255")
    if array.size == 0:
        raise DataError(f"{printable(where)} has no images: its shape is {array.shape}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        images = array.transpose(0, 3, 1, 2)
        return images if isinstance(array, np.memmap) else np.ascontiguousarray(images)
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise DataError(f"{printable(where)} has shape {array.shape}; expected (N, height, width), or with 1 or 3 channels")
