"""What lies behind what images show: black, white, or anything."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Background = Literal["dark", "light", "mostly dark", "mostly light", "any"]
"""What nearly all images have at their border, or most of them; `any` for photographs."""
MIDDLE = 127.5  # between dark and light
DARK, LIGHT = 64, 191
_MOST, _HARDLY_ANY = 0.75, 0.01


def classify_background(blocks: Iterable[NDArray[np.uint8]]) -> Background:
    """Return what images have at their border.

    Args:
        blocks: (n, C, H, W) each.
    """
    return classify_border_medians(np.concatenate([border_medians(block) for block in blocks]))


def border_medians(images: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
    """Return the median of the outermost pixels of each image: (N, C, H, W) to (N,)."""
    edges = (images[:, :, 0, :], images[:, :, -1, :], images[:, :, :, 0], images[:, :, :, -1])
    return np.asarray(np.median(np.concatenate([edge.reshape(len(images), -1) for edge in edges], axis=1), axis=1))


def classify_border_medians(medians: NDArray[np.floating[Any]]) -> Background:
    """Return likewise what images have at their border, by its median in each, (N,)."""
    if (medians <= DARK).mean() >= _MOST:
        return "dark" if (medians > MIDDLE).mean() <= _HARDLY_ANY else "mostly dark"
    if (medians >= LIGHT).mean() >= _MOST:
        return "light" if (medians < MIDDLE).mean() <= _HARDLY_ANY else "mostly light"
    return "any"
