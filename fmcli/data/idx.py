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

from fmcli.data.arrays import (
    ANY_RATIO_BYTES,
    MAX_ARRAY_BYTES,
    MAX_COMPRESSION_RATIO,
    MAX_IN_MEMORY_BYTES,
    explain_read_errors,
)
from fmcli.data.cache import unpack_to_cache
from fmcli.errors import DataError, printable
from fmcli.storage.reading import open_nonblocking

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


def find_idx_file(path: Path) -> Path | None:
    """Return the path of a file or of the gzipped file, whichever exists, or None."""
    return next((candidate for candidate in (path, path.with_name(path.name + ".gz")) if candidate.is_file()), None)


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
