"""Classify the background of images as dark, light or mixed."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Background = Literal["dark", "light", "mostly dark", "mostly light", "any"]
"""`dark`: nearly all images have a dark background. `mostly dark`: most images. `any`: neither, as in photographs."""
MIDDLE = 127.5
"""Brightness halfway between dark and light."""
DARK, LIGHT = 64, 191  # largest brightness of a dark border, smallest brightness of a light border
_MIN_MAJORITY = 0.75  # fraction of the images that have this background
_MAX_EXCEPTIONS = 0.01  # fraction of the images that have the opposite background


def classify_background(blocks: Iterable[NDArray[np.uint8]]) -> Background:
    """Classify the background of images by the brightness of their borders.

    Args:
        blocks: Images in blocks of (n, C, H, W).
    """
    return classify_border_medians(np.concatenate([border_medians(block) for block in blocks]))


def border_medians(images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
    """Return the median of the outermost pixels of each image: (N, C, H, W) to (N,)."""
    edges = (images[:, :, 0, :], images[:, :, -1, :], images[:, :, :, 0], images[:, :, :, -1])
    return np.asarray(np.median(np.concatenate([edge.reshape(len(images), -1) for edge in edges], axis=1), axis=1))


def classify_border_medians(medians: NDArray[np.floating[Any]]) -> Background:
    """Classify the background from the median of each image's border, shape (N,)."""
    if (medians <= DARK).mean() >= _MIN_MAJORITY:
        return "dark" if (medians > MIDDLE).mean() <= _MAX_EXCEPTIONS else "mostly dark"
    if (medians >= LIGHT).mean() >= _MIN_MAJORITY:
        return "light" if (medians < MIDDLE).mean() <= _MAX_EXCEPTIONS else "mostly light"
    return "any"
