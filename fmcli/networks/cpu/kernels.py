"""What PyTorch's operators do slowly on a CPU, compiled to machine code by numba.

Images are (N, H, W, C), in float32 or as int16, which are then the bits of bfloat16. `pooling` and `strided` use these,
and PyTorch where they cannot be had: importing this module, compiling and the first calls may fail in many ways.

Max-pooling is over tiles of 2 × 2 pixels, by whole vectors of channels, with a byte for each place. A convolution over
one channel, pooled, needs neither its own pixels in memory nor their gradient: of a tile, a filter learns from one
pixel only, by the 3 × 3 pixels of the image that it was made of.
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
_compile_sums = numba.njit(parallel=True, cache=True, fastmath={"contract"})  # x + y · z may be rounded once
_inline = numba.njit(fastmath={"contract"})
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


@_compile_sums
def convolve_and_pool(images, weights, maxima, places):
    """Convolve images of one channel by 3 × 3 pixels, and write each tile's maximum, or 0 if it is less.

    All is computed in float32, and chosen as in `pool`; what is written is rounded.

    Args:
        images: float32 (N, H, W), with the convolution's padding around them.
        weights: float32 (10, n_filters), the nine of each filter, by rows, and its bias.
        maxima: int16 (N, (H - 2) // 2, (W - 2) // 2, n_filters), written.
        places: uint8 of the same shape, written: as in `pool`, and 4 where no pixel is above 0.
    """
    n_rows, n_columns, n_filters = maxima.shape[1:]
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        for column in range(n_columns):
            first, second, third, fourth = _get_pixels(images[image], row, column)
            for channel in range(n_filters):
                best, place = _convolve(first, second, third, weights, channel), np.uint8(0)
                other = _convolve(first[1:], second[1:], third[1:], weights, channel)
                if other > best or np.isnan(other):
                    best, place = other, np.uint8(1)
                other = _convolve(second, third, fourth, weights, channel)
                if other > best or np.isnan(other):
                    best, place = other, np.uint8(2)
                other = _convolve(second[1:], third[1:], fourth[1:], weights, channel)
                if other > best or np.isnan(other):
                    best, place = other, np.uint8(3)
                if best <= 0:
                    best, place = np.float32(0), np.uint8(4)
                maxima[image, row, column, channel] = _bits_of_bfloat16(best)
                places[image, row, column, channel] = place


@_compile_sums
def convolve_and_pool_backward(images, gradient, places, sums):
    """Add up the gradients of weights and biases, each part of the images by itself.

    Args:
        images: float32 (N, H, W), as given to `convolve_and_pool`.
        gradient: int16 (N, (H - 2) // 2, (W - 2) // 2, n_filters), of the maxima.
        places: uint8 of the same shape, from `convolve_and_pool`.
        sums: float32 (n_parts, 10, n_filters), as `weights` there; added to.
    """
    n_parts = len(sums)
    n_rows, n_columns, n_filters = gradient.shape[1:]
    for part in prange(n_parts):
        total = sums[part]
        for image in range(part * len(images) // n_parts, (part + 1) * len(images) // n_parts):
            for row in range(n_rows):
                for column in range(n_columns):
                    first, second, third, fourth = _get_pixels(images[image], row, column)
                    received, place = gradient[image, row, column], places[image, row, column]
                    for channel in range(n_filters):
                        number = _number(received[channel]) if place[channel] < 4 else np.float32(0)
                        upper = _choose(first, second, place[channel])
                        middle = _choose(second, third, place[channel])
                        lower = _choose(third, fourth, place[channel])
                        total[0, channel] += number * upper[0]
                        total[1, channel] += number * upper[1]
                        total[2, channel] += number * upper[2]
                        total[3, channel] += number * middle[0]
                        total[4, channel] += number * middle[1]
                        total[5, channel] += number * middle[2]
                        total[6, channel] += number * lower[0]
                        total[7, channel] += number * lower[1]
                        total[8, channel] += number * lower[2]
                        total[9, channel] += number


@_inline
def _get_pixels(image, row, column):
    """Return the four rows of four pixels that a tile is made of."""
    return (
        _get_four(image[2 * row], 2 * column),
        _get_four(image[2 * row + 1], 2 * column),
        _get_four(image[2 * row + 2], 2 * column),
        _get_four(image[2 * row + 3], 2 * column),
    )


@_inline
def _get_four(pixels, start):
    return pixels[start], pixels[start + 1], pixels[start + 2], pixels[start + 3]


@_inline
def _convolve(upper, middle, lower, weights, channel):
    total = weights[9, channel]
    total += upper[0] * weights[0, channel] + upper[1] * weights[1, channel] + upper[2] * weights[2, channel]
    total += middle[0] * weights[3, channel] + middle[1] * weights[4, channel] + middle[2] * weights[5, channel]
    total += lower[0] * weights[6, channel] + lower[1] * weights[7, channel] + lower[2] * weights[8, channel]
    return total


@_inline
def _choose(upper, lower, place):
    """Return the three pixels of a row of the filter where the maximum lay, of the rows that it may be."""
    first = lower[0] if place >= 2 else upper[0]
    second = lower[1] if place >= 2 else upper[1]
    third = lower[2] if place >= 2 else upper[2]
    fourth = lower[3] if place >= 2 else upper[3]
    return (second, third, fourth) if place % 2 else (first, second, third)


@_inline
def _bits_of_bfloat16(number):
    """Return the bits of the nearest bfloat16, of two the even one; NaN must be one that a computation gives."""
    bits = np.float32(number).view(np.int32)
    return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@_compile
def gather_patches(images, patches, strides, padding):
    """Write for each pixel of a convolution the pixels that it is made of; zeros outside of the image.

    Args:
        images: float32 or int16 (N, H, W, C).
        patches: The same dtype, (N, n_rows, n_columns, kernel rows, kernel columns, C), written.
        strides: Down and across.
        padding: Of zeros, above and below, left and right.
    """
    n_rows, n_columns, kernel_rows, kernel_columns, n_channels = patches.shape[1:]
    height, width = images.shape[1:3]
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        for column in range(n_columns):
            for kernel_row in range(kernel_rows):
                y = row * strides[0] - padding[0] + kernel_row
                for kernel_column in range(kernel_columns):
                    x = column * strides[1] - padding[1] + kernel_column
                    patch = patches[image, row, column, kernel_row, kernel_column]
                    if 0 <= y < height and 0 <= x < width:
                        for channel in range(n_channels):
                            patch[channel] = images[image, y, x, channel]
                    else:
                        patch[:] = 0
