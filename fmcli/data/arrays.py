"""Limits for reading arrays from files, and the shapes of arrays of images. All file formats share them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import DataError, FmcliError, printable

MAX_ARRAY_BYTES = 8 << 30  # largest array that is compressed or read into memory
MAX_IN_MEMORY_BYTES = 256 << 20  # larger arrays of images are mapped from a file
MAX_COMPRESSION_RATIO = 200  # two-colour drawings reach 100, decompression bombs 1000
ANY_RATIO_BYTES = 128 << 20  # smaller arrays may have any compression ratio


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
