"""What lies behind what images show: black, white, or anything."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Background = Literal["dark", "light", "any"]
_DARK, _LIGHT = 64, 191


def find_background(images: NDArray[np.uint8]) -> Background:
    """Return what most images have at their border: `dark`, `light`, or `any` for photographs.

    Args:
        images: (N, C, H, W).
    """
    return background_of(border_medians(images))


def border_medians(images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
    """Return the median of the outermost pixels of each image: (N, C, H, W) to (N,)."""
    edges = (images[:, :, 0, :], images[:, :, -1, :], images[:, :, :, 0], images[:, :, :, -1])
    return np.asarray(np.median(np.concatenate([edge.reshape(len(images), -1) for edge in edges], axis=1), axis=1))


def background_of(medians: NDArray[np.floating[Any]]) -> Background:
    """Return likewise what most images have at their border, by its median in each, (N,)."""
    if (medians <= _DARK).mean() >= 0.75:
        return "dark"
    return "light" if (medians >= _LIGHT).mean() >= 0.75 else "any"
