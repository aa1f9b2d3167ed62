"""CPU kernels, compiled by numba, for operators that are slow in PyTorch.

Images have shape (N, H, W, C) and are float32, or int16 with the bits of bfloat16. `pooling` and `strided` call
the kernels and fall back to PyTorch: importing this module, compiling it and the first calls can fail in many ways.

Max-pooling covers tiles of 2 × 2 pixels. It processes vectors of channels and stores each index in one byte.
A one-channel convolution followed by pooling stores neither its own output nor the gradient of that output: in each
tile, the gradient of a filter depends on one pixel only, and on the 3 × 3 input pixels that it was computed from.
"""

import os

import numba
import numpy as np
from numba import prange
from numba.extending import overload

# numba also reads a configuration file in the working directory, which may be untrusted. That file must not choose the
# code that is loaded.
numba.config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")
numba.config.CACHE_LOCATOR_CLASSES = os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES", "")

_compile = numba.njit(parallel=True, cache=True)  # takes seconds on first use, then cached on disk
_compile_sums = numba.njit(parallel=True, cache=True, fastmath={"contract"})  # allows fused multiply-add
_inline = numba.njit(fastmath={"contract"})
_process = os.getpid()


def shares_threads() -> bool:
    """Return whether the kernels use OpenMP threads, as PyTorch does on Linux. Other threads would compete for cores.

    Raises:
        ValueError: numba finds no OpenMP.
    """
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    use_threads(1)
    return bool(numba.threading_layer() == "omp" and not numba.config.DISABLE_JIT)


def is_forked() -> bool:
    """Return whether this process was forked after the import. OpenMP would terminate such a process."""
    return os.getpid() != _process


def use_threads(count: int) -> None:
    """Set the number of threads for kernels that the calling thread runs, at most the number that numba has."""
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def _number(bits):
    """Return an array element as float32. An int16 element has the bits of a bfloat16: a float32's upper half."""


@overload(_number, inline="always")  # the implementation that numba compiles
def _(bits):
    if isinstance(bits, numba.types.Integer):
        return lambda bits: np.int32(np.int32(bits) << 16).view(np.float32)
    return lambda bits: bits


@_compile
def pool(images, maxima, indices):
    """Compute the maximum of each tile and its index.

    As in PyTorch, the first of equal maxima wins, and NaN is larger than every number before it.

    Args:
        images: float32 or int16 (N, H, W, C).
        maxima: Output, same dtype, (N, H // 2, W // 2, C).
        indices: Output, uint8 (N, H // 2, W // 2, C): 0 and 1 for the tile's upper row, 2 and 3 for the lower row.
    """
    n_rows, n_columns, n_channels = maxima.shape[1:]
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        upper, lower = images[image, 2 * row], images[image, 2 * row + 1]
        for column in range(n_columns):
            for channel in range(n_channels):  # one pass over four pixels is 3 times as fast as four passes
                best, index = upper[2 * column, channel], np.uint8(0)
                other = upper[2 * column + 1, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, index = other, np.uint8(1)
                other = lower[2 * column, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, index = other, np.uint8(2)
                other = lower[2 * column + 1, channel]
                if _number(other) > _number(best) or np.isnan(_number(other)):
                    best, index = other, np.uint8(3)
                maxima[image, row, column, channel] = best
                indices[image, row, column, channel] = index


@_compile
def pool_backward(gradient, indices, images):
    """Write each tile's gradient to the pixel of its maximum, and zeros to the other three.

    Args:
        gradient: float32 or int16 (N, H // 2, W // 2, C), gradient of the maxima.
        indices: uint8 (N, H // 2, W // 2, C), from `pool`.
        images: Output, the dtype of `gradient`, (N, H, W, C): gradient of the images. A last row or column outside all
            tiles is not written.
    """
    n_rows, n_columns, n_channels = gradient.shape[1:]
    zero = gradient.dtype.type(0)
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        for column in range(n_columns):
            received, index = gradient[image, row, column], indices[image, row, column]
            for pixel in range(4):  # one pixel at a time: loops that write to two addresses are not vectorized
                given = images[image, 2 * row + pixel // 2, 2 * column + pixel % 2]
                for channel in range(n_channels):
                    given[channel] = received[channel] if index[channel] == np.uint8(pixel) else zero


@_compile_sums
def convolve_and_pool(images, weights, maxima, indices):
    """Convolve one-channel images with 3 × 3 filters, max-pool the result and apply ReLU.

    Computation is in float32, with the maximum chosen as in `pool`. Only the output is rounded to bfloat16.

    Args:
        images: float32 (N, H, W), padded for the convolution.
        weights: float32 (10, n_filters): the nine weights of each filter, row by row, then its bias.
        maxima: Output, int16 (N, (H - 2) // 2, (W - 2) // 2, n_filters).
        indices: Output, uint8 of the same shape: as in `pool`, or 4 if no pixel is above 0.
    """
    n_rows, n_columns, n_filters = maxima.shape[1:]
    for task in prange(len(images) * n_rows):
        image, row = task // n_rows, task % n_rows
        for column in range(n_columns):
            first, second, third, fourth = _get_pixels(images[image], row, column)
            for channel in range(n_filters):
                best, index = _convolve(first, second, third, weights, channel), np.uint8(0)
                other = _convolve(first[1:], second[1:], third[1:], weights, channel)
                if other > best or np.isnan(other):
                    best, index = other, np.uint8(1)
                other = _convolve(second, third, fourth, weights, channel)
                if other > best or np.isnan(other):
                    best, index = other, np.uint8(2)
                other = _convolve(second[1:], third[1:], fourth[1:], weights, channel)
                if other > best or np.isnan(other):
                    best, index = other, np.uint8(3)
                if best <= 0:
                    best, index = np.float32(0), np.uint8(4)
                maxima[image, row, column, channel] = _bits_of_bfloat16(best)
                indices[image, row, column, channel] = index


@_compile_sums
def convolve_and_pool_backward(images, gradient, indices, sums):
    """Sum the gradients of weights and biases over each part of the batch.

    Args:
        images: float32 (N, H, W), as given to `convolve_and_pool`.
        gradient: int16 (N, (H - 2) // 2, (W - 2) // 2, n_filters), gradient of the maxima.
        indices: uint8 of the same shape, from `convolve_and_pool`.
        sums: float32 (n_parts, 10, n_filters), laid out as `weights` in `convolve_and_pool`. The gradients are added to
            it.
    """
    n_parts = len(sums)
    n_rows, n_columns, n_filters = gradient.shape[1:]
    for part in prange(n_parts):
        total = sums[part]
        for image in range(part * len(images) // n_parts, (part + 1) * len(images) // n_parts):
            for row in range(n_rows):
                for column in range(n_columns):
                    first, second, third, fourth = _get_pixels(images[image], row, column)
                    received, index = gradient[image, row, column], indices[image, row, column]
                    for channel in range(n_filters):
                        number = _number(received[channel]) if index[channel] < 4 else np.float32(0)
                        upper = _choose(first, second, index[channel])
                        middle = _choose(second, third, index[channel])
                        lower = _choose(third, fourth, index[channel])
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
    """Return the 4 × 4 input pixels, by rows, from which a tile is computed."""
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
def _choose(upper, lower, index):
    """Return the three input pixels under one row of the filter at a tile's maximum.

    Args:
        upper: Four pixels, the input row if the maximum is in the tile's upper row.
        lower: Four pixels, the input row if it is in the lower row.
        index: Index of the maximum in its tile.
    """
    first = lower[0] if index >= 2 else upper[0]
    second = lower[1] if index >= 2 else upper[1]
    third = lower[2] if index >= 2 else upper[2]
    fourth = lower[3] if index >= 2 else upper[3]
    return (second, third, fourth) if index % 2 else (first, second, third)


@_inline
def _bits_of_bfloat16(number):
    """Round a float32 to the nearest bfloat16, ties to even, and return its bits.

    A NaN must come from arithmetic: one with only low mantissa bits set would turn into infinity.
    """
    bits = np.float32(number).view(np.int32)
    return np.int16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@_compile
def gather_patches(images, patches, strides, padding):
    """Copy the input window of each output pixel of a convolution (im2col), with zeros outside the image.

    Args:
        images: float32 or int16 (N, H, W, C).
        patches: Output, same dtype, (N, n_rows, n_columns, kernel rows, kernel columns, C).
        strides: Vertical and horizontal stride.
        padding: Rows of zeros above and below, columns of zeros left and right.
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
