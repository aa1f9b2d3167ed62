"""Labelled images, in memory or mapped from a file that is larger."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.data.background import Background
from fmcli.errors import DataError, printable
from fmcli.storage.reading import MAX_CLASSES

MAX_IMAGE_VALUES = 1 << 22  # numbers, of all channels
_BLOCK = 1 << 24  # bytes of images to look through at once


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, their labels and the classes' names.

    Args:
        pixels: uint8 (M, C, H, W): the images, or more of them; in memory, or mapped from a file.
        labels: int64 (N,), in 0 … n_classes - 1.
        class_names: In label order.
        rows: int64 (N,): which of `pixels` the images are. By default all, in their order.
        background: What lies behind what they show, where their source knows; see `classify_background`.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    rows: NDArray[np.int64] | None = None
    background: Background | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def is_mapped(self) -> bool:
        """Whether the images lie in a file, and reach memory as they are used."""
        return isinstance(self.pixels, np.memmap)

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, C, H, W)."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def take(self, indices: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Return some of the images, by position: uint8 (n, C, H, W)."""
        return self.pixels[indices if self.rows is None else self.rows[indices]]

    @property
    def block_size(self) -> int:
        """How many images there are in each of the blocks but the last."""
        return max(_BLOCK // math.prod(self.input_shape), 1)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in their order, uint8 (n, C, H, W), a few megabytes at a time."""
        for start in range(0, len(self), self.block_size):
            yield self.take(slice(start, start + self.block_size))

    def sample(self, size: int) -> "ImageSet":
        """Return so many of the images, evenly spaced, or all."""
        return self.subset(np.linspace(0, len(self) - 1, min(size, len(self)), dtype=np.int64))

    def first_of_each_class(self, count: int) -> "ImageSet":
        """Return the first images of each class, so many or fewer."""
        places = [np.flatnonzero(self.labels == label)[:count] for label in range(len(self.class_names))]
        return self.subset(np.sort(np.concatenate(places)))

    def subset(self, indices: NDArray[np.int64] | slice) -> "ImageSet":
        """Return some of the images, by position, which stay where they are."""
        pixels, rows = self.pixels, self.rows
        if rows is not None:
            rows = rows[indices]
        elif isinstance(indices, slice):
            pixels = pixels[indices]
        else:
            rows = indices
        return ImageSet(pixels, self.labels[indices], self.class_names, rows, self.background)

    def counts(self) -> NDArray[np.int64]:
        """Return int64 (n_classes,): how many images each class has."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """A SHA-256 over images and labels: their shapes, dtypes and bytes."""
        digest = hashlib.sha256(f"|u1{(len(self), *self.input_shape)}".encode())
        for block in self.blocks():
            digest.update(np.ascontiguousarray(block).data)
        digest.update(f"{self.labels.dtype.str}{self.labels.shape}".encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel's pixels, from exact sums."""
        channels, height, width = self.input_shape
        total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
        for block in self.blocks():
            total += block.sum(axis=(0, 2, 3), dtype=np.uint64)
            squares += np.square(block, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.uint64)
        count = len(self) * height * width
        sums = [(int(one), int(two)) for one, two in zip(total, squares, strict=True)]
        return (
            tuple(one / count for one, _ in sums),
            tuple(math.sqrt(count * two - one**2) / count for one, two in sums),
        )


def check_image_set(
    images: NDArray[np.uint8], labels: NDArray[Any], class_names: tuple[str, ...], *, where: str
) -> ImageSet:
    """Return an image set after checking that its parts fit together.

    Args:
        images: (N, C, H, W).
        labels: (N,).
        class_names: In label order.
        where: What to call it in errors.

    Raises:
        DataError: There are no images, far too large ones, or far too many classes; counts differ, or a label has no
            class.
    """
    if len(images) == 0:
        raise DataError(f"{printable(where)} has no images")
    if len(class_names) > MAX_CLASSES:
        raise DataError(f"{printable(where)} has {len(class_names)} classes; the limit is {MAX_CLASSES}")
    if images[0].size > MAX_IMAGE_VALUES:
        raise DataError(f"{printable(where)} has images of {images[0].size} numbers; the limit is {MAX_IMAGE_VALUES}")
    if len(images) != len(labels):
        raise DataError(f"{printable(where)} has {len(images)} images but {len(labels)} labels")
    beyond = int(labels.max())
    if beyond >= len(class_names):
        index = int((labels >= len(class_names)).argmax())
        raise DataError(
            f"{printable(where)}: image {index} has label {int(labels[index])}, "
            f"but there are {len(class_names)} classes (labels 0 to {len(class_names) - 1})",
            hint="check the labels file, or data.classes in the recipe",
        )
    return ImageSet(images, labels.astype(np.int64), class_names)
