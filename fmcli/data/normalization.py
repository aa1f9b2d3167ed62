"""Normalize pixels to network input."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from fmcli.data.image_set import ImageSet
from fmcli.recipe.data import PixelScale


@dataclass(frozen=True, slots=True)
class Normalization:
    """Compute (pixel - mean) / std for each channel.

    Args:
        mean: Mean of each channel in pixel units, 0 to 255.
        std: Standard deviation of each channel in pixel units, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return network input: float32 (N, C, H, W) in channels-last memory format.

        Args:
            images: (N, C, H, W), uint8 or float, 0 to 255.
        """
        mean, scale = _constants(self, images.device)
        return ((images.float() - mean) * scale).contiguous(memory_format=torch.channels_last)


@cache
def _constants(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / std, (1, C, 1, 1), from a cache, because creating a tensor waits for the GPU."""
    mean = torch.tensor(normalization.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(normalization.std, device=device).view(1, -1, 1, 1)
    return mean, 1 / std


def resolve_normalization(
    spec: Literal["standard", "unit", "symmetric"] | PixelScale, train: ImageSet
) -> Normalization:
    """Return the normalization of a recipe.

    Args:
        spec: Value of `data.normalize`.
        train: Training images; `standard` uses their mean and standard deviation.
    """
    if spec == "standard":
        mean, std = train.moments
        return Normalization(mean, tuple(value or 1.0 for value in std))
    if spec == "unit":
        spec = PixelScale()
    elif spec == "symmetric":
        spec = PixelScale(mean=0.5, std=0.5)
    return scale_pixels(spec, channels=train.input_shape[0])


def scale_pixels(spec: PixelScale, channels: int) -> Normalization:
    """Return the normalization with the numbers of a recipe: the same numbers for every channel."""
    return Normalization((spec.mean * spec.divide_by,) * channels, (spec.std * spec.divide_by,) * channels)
