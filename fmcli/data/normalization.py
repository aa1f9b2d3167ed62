"""From pixels to network input."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from fmcli.data.image_set import ImageSet
from fmcli.recipe.data import PixelScale


@dataclass(frozen=True, slots=True)
class Normalization:
    """Network input is (pixel - mean) / std, channel by channel; both in pixel units, 0 to 255.

    Args:
        mean: One number a channel.
        std: One number a channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 network input, channels last in memory.

        Args:
            images: (N, C, H, W), uint8 or float, 0 to 255.
        """
        mean, scale = _constants(self, images.device)
        return ((images.float() - mean) * scale).contiguous(memory_format=torch.channels_last)


@cache
def _constants(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / std, (1, C, 1, 1), made once: a GPU would be waited for each time."""
    mean = torch.tensor(normalization.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(normalization.std, device=device).view(1, -1, 1, 1)
    return mean, 1 / std


def resolve_normalization(
    spec: Literal["standard", "unit", "symmetric"] | PixelScale, train: ImageSet
) -> Normalization:
    """Return the numbers that a recipe's `data.normalize` stands for.

    Args:
        spec: The recipe's word.
        train: The training images, which `standard` takes mean and spread from.
    """
    channels = train.input_shape[0]
    if isinstance(spec, PixelScale):
        return scale_pixels(spec, channels)
    if spec == "unit":
        return Normalization((0.0,) * channels, (255.0,) * channels)
    if spec == "symmetric":
        return Normalization((127.5,) * channels, (127.5,) * channels)
    mean, std = train.moments
    return Normalization(mean, tuple(value or 1.0 for value in std))


def scale_pixels(spec: PixelScale, channels: int) -> Normalization:
    """Return what a recipe's own numbers stand for, the same for every channel."""
    return Normalization((spec.mean * spec.divide_by,) * channels, (spec.std * spec.divide_by,) * channels)
