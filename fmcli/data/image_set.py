"""Labelled images, in memory or mapped from a file, and their splits."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import SPLITS
from fmcli.data.background import Background
from fmcli.errors import DataError

MAX_IMAGE_VALUES = 1 << 22  # pixels times channels
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels and class names.

    Args:
        pixels: uint8 (M, C, H, W), in memory or mapped from a file.
        labels: int64 (N,), in 0 … n_classes - 1.
        class_names: Class names in label order.
        rows: Indices of the images of the set in `pixels`, int64 (N,). Default: all images.
        background: Background of the images if it is known; see `classify_background`.
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
        """Whether the images are mapped from a file."""
        return isinstance(self.pixels, np.memmap)

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, C, H, W)."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def take(self, indices: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Return the pixels of some images by index, uint8 (n, C, H, W)."""
        return self.pixels[indices if self.rows is None else self.rows[indices]]

    @property
    def block_size(self) -> int:
        """Number of images per block, about 16 MiB; the last block may be smaller."""
        return max(_BLOCK_BYTES // math.prod(self.input_shape), 1)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in order, in blocks of `block_size`: uint8 (n, C, H, W)."""
        for start in range(0, len(self), self.block_size):
            yield self.take(slice(start, start + self.block_size))

    def sample(self, size: int) -> "ImageSet":
        """Return at most `size` evenly spaced images."""
        return self.subset(np.linspace(0, len(self) - 1, min(size, len(self)), dtype=np.int64))

    def first_of_each_class(self, count: int) -> "ImageSet":
        """Return the first `count` images of each class, or fewer if a class has fewer."""
        indices = [np.flatnonzero(self.labels == label)[:count] for label in range(len(self.class_names))]
        return self.subset(np.sort(np.concatenate(indices)))

    def subset(self, indices: NDArray[np.int64] | slice) -> "ImageSet":
        """Return a set of some of the images, by index, without copying pixels."""
        pixels, rows = self.pixels, self.rows
        if rows is not None:
            rows = rows[indices]
        elif isinstance(indices, slice):
            pixels = pixels[indices]
        else:
            rows = indices
        return ImageSet(pixels, self.labels[indices], self.class_names, rows, self.background)

    def counts(self) -> NDArray[np.int64]:
        """Return the number of images of each class, int64 (n_classes,)."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shapes, dtypes and bytes of images and labels."""
        digest = hashlib.sha256(f"|u1{(len(self), *self.input_shape)}".encode())
        for block in self.blocks():
            digest.update(np.ascontiguousarray(block).data)
        digest.update(f"{self.labels.dtype.str}{self.labels.shape}".encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the pixels of each channel, from exact integer sums."""
        channels, height, width = self.input_shape
        total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
        for block in self.blocks():
            total += block.sum(axis=(0, 2, 3), dtype=np.uint64)
            squares += np.square(block, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.uint64)
        count = len(self) * height * width
        sums = [(int(of_values), int(of_squares)) for of_values, of_squares in zip(total, squares, strict=True)]
        return (
            tuple(of_values / count for of_values, _ in sums),
            tuple(math.sqrt(count * of_squares - of_values**2) / count for of_values, of_squares in sums),
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """Training, validation and test images, of a source or of a run.

    Args:
        train: Images to fit weights on.
        validation: Images to make choices on, or None.
        test: Images for the final score. No choice depends on them.
        path: Folder or file of the images, or None.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    path: Path | None = None

    def present(self) -> dict[str, ImageSet]:
        """Return the splits that exist, by name."""
        return {name: images for name in SPLITS if (images := getattr(self, name)) is not None}

    def named(self, name: str) -> ImageSet:
        """Return a split by name.

        Raises:
            DataError: There is no such split.
        """
        images = self.present().get(name)
        if images is None:
            raise DataError(f"there are no {name} images", hint="add validation = { first = 5000 } to [data]")
        return images
