"""IDX files, the format of MNIST and its kin, gzipped or not.

References:
    Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits": file formats.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import DataError, printable

LARGEST_ARRAY = 8 << 30  # bytes: more than this is a header that lies
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 24


def read_idx(path: Path) -> tuple[NDArray[Any], bytes]:
    """Read an IDX file.

    Args:
        path: Gzipped where its name ends in `.gz`.

    Returns:
        The array, and the unpacked bytes of the whole file, for digests.

    Raises:
        DataError: The file is missing, cut short, too long, or not IDX.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4)
            dtype, shape, header = _parse_header(header, file, path)
            size = dtype.itemsize * math.prod(shape)
            if size > LARGEST_ARRAY:
                raise DataError(f"{printable(path)} promises {size} bytes; the limit is {LARGEST_ARRAY}")
            content = _read_up_to(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"cannot read {printable(path)}: {printable(reason)}",
            hint="the file is missing or damaged: get it again",
        ) from error
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise DataError(
            f"{printable(path)} promises {size} bytes of data for shape {shape} but holds {found}",
            hint="the file is damaged: get it again",
        )
    return np.frombuffer(content, dtype=dtype).reshape(shape), header + content


def _parse_header(magic: bytes, file: Any, path: Path) -> tuple[np.dtype[Any], tuple[int, ...], bytes]:
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= 4:
        raise DataError(f"{printable(path)} is not an IDX file: it begins with {magic.hex() or 'nothing'}")
    sides = file.read(4 * magic[3])
    if len(sides) != 4 * magic[3]:
        raise DataError(f"{printable(path)} is cut short in its header")
    return np.dtype(_DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sides), magic + sides


def _read_up_to(file: Any, size: int) -> bytes:
    """Read at most this many bytes, in steps, so that a lying header costs no memory."""
    chunks, left = [], size
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


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
