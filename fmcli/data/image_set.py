"""Labelled images in memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import DataError, printable
from fmcli.predictions import digest_arrays

LARGEST_IMAGE = 1 << 22  # numbers, of all channels


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images, their labels and the classes' names.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), in 0 … n_classes - 1.
        class_names: In label order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: NDArray[np.int64] | slice) -> "ImageSet":
        """Return some of the images, by position."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)

    def counts(self) -> NDArray[np.int64]:
        """Return int64 (n_classes,): how many images each class has."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def digest(self) -> str:
        """Return a SHA-256 over images and labels."""
        return digest_arrays(self.images, self.labels)


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
        DataError: There are no images, or far too large ones, counts differ, or a label has no class.
    """
    if len(images) == 0:
        raise DataError(f"{printable(where)} has no images")
    if images[0].size > LARGEST_IMAGE:
        raise DataError(f"{printable(where)} has images of {images[0].size} numbers; the limit is {LARGEST_IMAGE}")
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
