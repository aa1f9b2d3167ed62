"""IDX files, the format of MNIST and its kin, gzipped or not.

References:
    Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": file formats.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.reading import open_at_once

LARGEST_ARRAY = 8 << 30  # bytes: more than this is a header that lies
LARGEST_RATIO = 200  # of a file to its gzipped form; drawings in two colours have a hundred, bombs a thousand
_HARMLESS = 128 << 20  # bytes, which may be gzipped to anything
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24


def read_idx(path: Path) -> tuple[NDArray[Any], bytearray]:
    """Read an IDX file.

    Args:
        path: Gzipped where its name ends in `.gz`.

    Returns:
        The array, and the unpacked bytes of the whole file, for digests.

    Raises:
        DataError: The file is missing, cut short, too long, or not IDX.
    """
    try:
        with open_at_once(path) as packed:
            file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
            content = bytearray(file.read(4))
            dtype, shape = _parse_header(content, file, path)
            start, size = len(content), dtype.itemsize * math.prod(shape)
            most = dtype.itemsize * math.prod(side or 1 for side in shape)  # one side of 0 may hide what the others say
            _check_promise(path, most, packed_size=os.fstat(packed.fileno()).st_size)
            _read_up_to(file, size + 1, content)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: NUL in its name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}",
            hint="the file is missing or damaged: get it again",
        ) from error
    found = len(content) - start
    if found != size:
        raise DataError(
            f"{printable(path)} promises {size} bytes of data for shape {shape} but holds "
            f"{'more' if found > size else found}",
            hint="the file is damaged: get it again",
        )
    return np.frombuffer(memoryview(content).toreadonly(), dtype=dtype, offset=start).reshape(shape), content


def _parse_header(
    content: bytearray, file: BinaryIO | gzip.GzipFile, path: Path
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape, and read the rest of the header."""
    if len(content) != 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES or not 1 <= content[3] <= 4:
        raise DataError(f"{printable(path)} is not an IDX file: it begins with {content.hex() or 'nothing'}")
    sides = file.read(4 * content[3])
    if len(sides) != 4 * content[3]:
        raise DataError(f"{printable(path)} is cut short in its header")
    dtype = np.dtype(_DTYPES[content[2]])
    content += sides
    return dtype, struct.unpack(f">{len(sides) // 4}I", sides)


def _check_promise(path: Path, size: int, *, packed_size: int) -> None:
    """Refuse too many bytes before any memory is taken."""
    if size > LARGEST_ARRAY:
        raise DataError(f"{printable(path)} promises {size} bytes; the limit is {LARGEST_ARRAY}")
    ratio = LARGEST_RATIO if path.suffix == ".gz" else 1
    if size > _HARMLESS and size > ratio * packed_size:
        raise DataError(
            f"{printable(path)} promises {size} bytes, and has {packed_size}; the limit is {ratio} times that",
            hint="the file is damaged: get it again; or unpack it with gunzip, if it can be trusted",
        )


def _read_up_to(file: BinaryIO | gzip.GzipFile, size: int, content: bytearray) -> None:
    """Add at most so many bytes to a content, in steps, so that a lying header costs no memory."""
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        content += chunk
        size -= len(chunk)


def to_images(array: NDArray[Any], *, where: object) -> NDArray[np.uint8]:
    """Return an array of pictures as uint8 (N, C, H, W).

    Args:
        array: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3.
        where: What to call it in errors.

    Raises:
        DataError: It is none of these.
    """
    if array.dtype != np.uint8:
        raise DataError(f"{printable(where)} holds {array.dtype} values; pictures are uint8, 0 to 255")
    if array.size == 0:
        raise DataError(f"{printable(where)} has no images: its shape is {array.shape}")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    raise DataError(f"{printable(where)} has shape {array.shape}; expected (N, height, width), or with 1 or 3 channels")
