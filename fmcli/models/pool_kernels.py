"""Max-pooling over tiles of 2 × 2 pixels, compiled to machine code: whole vectors of channels, a byte for each place.

Images are (N, H, W, C), in float32 or as int16, which are then the bits of bfloat16. `pooling` uses these, and PyTorch
where they cannot be had: importing this module, compiling and the first calls may fail in many ways.
"""

import os

import numba
import numpy as np
from numba import prange
from numba.extending import overload

# numba also reads a file of the working directory, which may be a stranger's. It is not to say what code is loaded.
numba.config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")
numba.config.CACHE_LOCATOR_CLASSES = os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES", "")

_compile = numba.njit(parallel=True, cache=True)  # takes seconds, once on a machine
_process = os.getpid()


def shares_threads() -> bool:
    """Tell whether the kernels compute on OpenMP's threads, as PyTorch does on Linux: others would fight for the cores.

    Raises:
        ValueError: numba finds no OpenMP.
    """
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    use_threads(1)
    return bool(numba.threading_layer() == "omp" and not numba.config.DISABLE_JIT)


def is_forked() -> bool:
    """Tell whether this is a process forked from the one that began: OpenMP would end it."""
    return os.getpid() != _process


def use_threads(count: int) -> None:
    """Compute with so many threads from here on, but with no more than numba has."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def _number(bits):
    """Return the number that stands in an array: itself in float32, the upper half of its float32 in bfloat16."""


@overload(_number, inline="always")  # what `_number` does when compiled
def _(bits):
    if isinstance(bits, numba.types.Integer):
        return lambda bits: np.int32(np.int32(bits) << 16).view(np.float32)
    return lambda bits: bits


@_compile
def pool(images, maxima, places):
    """Write each tile's maximum, and where it lies.

    As in PyTorch, the first of equal maxima is taken, and NaN counts as larger than any number before it.

    Args:
        images: float32 or int16 (N, H, W, C).
        maxima: The same dtype, (N, H // 2, W // 2, C), written.
        places: uint8 (N, H // 2, W // 2, C), written: 0 and 1 in the upper row of the tile, 2 and 3 in the lower.
    """
    n_rows, n_columns, n_channels = maxima.shape[1:]
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        upper, lower = images[image, 2 * row], images[image, 2 * row + 1]
        for column in range(n_columns):
            for channel in range(n_channels):  # four pixels at once: one after another takes three times as long
                best, place = upper[2 * column, channel], np.uint8(0)
                other = upper[2 * column + 1, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, place = other, np.uint8(1)
                other = lower[2 * column, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, place = other, np.uint8(2)
                other = lower[2 * column + 1, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, place = other, np.uint8(3)
                maxima[image, row, column, channel] = best
                places[image, row, column, channel] = place


@_compile
def pool_backward(gradient, places, images):
    """Write each tile's gradient where its maximum lay, and zeros beside it.

    Args:
        gradient: float32 or int16 (N, H // 2, W // 2, C), of the maxima.
        places: uint8 (N, H // 2, W // 2, C), from `pool`.
        images: The dtype of `gradient`, (N, H, W, C), the gradient of the images: written, but for a last row or column
            outside of all tiles.
    """
    n_rows, n_columns, n_channels = gradient.shape[1:]
    zero = gradient.dtype.type(0)
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        for column in range(n_columns):
            received, place = gradient[image, row, column], places[image, row, column]
            for pixel in range(4):  # one after another: a loop that writes to two places is not made of vectors
                given = images[image, 2 * row + pixel // 2, 2 * column + pixel % 2]
                for channel in range(n_channels):
                    given[channel] = received[channel] if place[channel] == np.uint8(pixel) else zero
