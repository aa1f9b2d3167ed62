"""Augment batches of images on their device.

Each `random_…` function draws one set of random numbers per image from an explicit generator on that device, then
applies a pure function to the whole batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcli.recipe.augment import AugmentSpec

_MAX_ERASE_ASPECT = 3.3  # longer side over shorter side, as in Zhong et al.


def augment(images: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Apply the augmentation of a recipe, except albumentations, which `DeviceLoader` applies on the host.

    Args:
        images: uint8 (N, C, H, W).
        spec: The recipe's `[augment]` table.
        generator: Generator on the images' device.

    Returns:
        Images of the same shape: uint8, or float32 in 0 … 255 if pixels were interpolated.
    """
    if spec.flip:
        images = random_flip(images, probability=spec.flip, generator=generator)
    if spec.shift:
        images = random_shift(images, pixels=spec.shift, generator=generator)
    if spec.rotate or spec.translate:
        images = random_affine(images.float(), rotate=spec.rotate, translate=spec.translate, generator=generator)
    if spec.erase:
        images = random_erase(images, probability=spec.erase, area=spec.erase_area, generator=generator)
    return images


def random_affine(images: Tensor, *, rotate: float, translate: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about the centre, then shift it. Pixels from outside the image are 0.

    Args:
        images: float (N, C, H, W).
        rotate: Largest angle in degrees. Angles are uniform in ±rotate.
        translate: Largest shift as a fraction of each side. Shifts are uniform in ±translate.
        generator: Generator on the images' device.
    """
    n_images, _, height, width = images.shape
    draws = torch.rand((3, n_images), generator=generator, device=images.device) * 2 - 1  # in [-1, 1)
    return affine(images, draws[0] * rotate, draws[1] * translate * width, draws[2] * translate * height)


def affine(images: Tensor, degrees: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Rotate each image about the centre, then shift it, with bilinear interpolation. Pixels from outside are 0.

    Args:
        images: float (N, C, H, W).
        degrees: Counter-clockwise angle on screen, (N,).
        right: Shift to the right in pixels, (N,).
        down: Shift down in pixels, (N,).

    References:
        Jaderberg, Simonyan, Zisserman and Kavukcuoglu, "Spatial transformer networks", 2015: sampling from a grid.
    """
    height, width = images.shape[2:]
    angle = degrees[:, None] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # Map output to input coordinates, in pixels from the centre: undo the shift, then the rotation. The unit of the
    # grid is half a side. `F.affine_grid` takes several times as long, because it multiplies a matrix for each pixel.
    columns = torch.arange(width, device=images.device) - ((width - 1) / 2 + right[:, None])  # (N, W)
    rows = torch.arange(height, device=images.device) - ((height - 1) / 2 + down[:, None])  # (N, H)
    x = (cos * columns * (2 / width))[:, None, :] - (sin * rows * (2 / width))[:, :, None]  # (N, H, W)
    y = (sin * columns * (2 / height))[:, None, :] + (cos * rows * (2 / height))[:, :, None]
    grid = torch.stack([x, y], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_flip(images: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """Flip random images horizontally.

    Args:
        images: (N, C, H, W), any dtype.
        probability: Probability that an image is changed, in [0, 1].
        generator: Generator on the images' device.
    """
    chosen = torch.rand(len(images), generator=generator, device=images.device) < probability
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def random_shift(images: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each image by a random number of whole pixels in both directions.

    Args:
        images: (N, C, H, W), any dtype.
        pixels: Largest shift. Shifts are uniform in ±pixels.
        generator: Generator on the images' device.
    """
    steps = torch.randint(-pixels, pixels + 1, (2, len(images)), generator=generator, device=images.device)
    return shift(images, steps[0], steps[1])


def shift(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Shift each image by whole pixels. Pixels from outside the image are 0.

    Args:
        images: (N, C, H, W), any dtype.
        right: Shift to the right, int64 (N,).
        down: Shift down, int64 (N,).
    """
    n_images, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device) - right[:, None]  # (N, W), source columns
    rows = torch.arange(height, device=images.device) - down[:, None]  # (N, H), source rows
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # (N, H, W)
    index = source.view(n_images, 1, height * width).expand(-1, channels, -1)
    moved = images.reshape(n_images, channels, height * width).gather(2, index)
    return moved.view_as(images) * inside[:, None].to(images.dtype)


def random_erase(
    images: Tensor, *, probability: float, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Fill a rectangle of random images with noise.

    Args:
        images: (N, C, H, W), uint8 or float in 0 … 255.
        probability: Probability that an image is changed, in [0, 1].
        area: Smallest and largest fraction of the image. A rectangle that is longer than a side is cut.
        generator: Generator on the images' device.

    References:
        Zhong, Zheng, Kang, Li and Yang, "Random erasing data augmentation", AAAI 2020.
    """
    n_images, channels, height, width = images.shape
    draws = torch.rand((5, n_images), generator=generator, device=images.device)
    size = (area[0] + draws[1] * (area[1] - area[0])) * (height * width)
    aspect = torch.exp((draws[2] * 2 - 1) * math.log(_MAX_ERASE_ASPECT))
    tall = (size * aspect).sqrt().round().clamp(1, height)
    wide = (size / aspect).sqrt().round().clamp(1, width)
    top = (draws[3] * (height - tall + 1)).floor()
    left = (draws[4] * (width - wide + 1)).floor()
    tall = torch.where(draws[0] < probability, tall, torch.zeros_like(tall))
    shape = (n_images, channels, height, width)
    noise = torch.randint(0, 256, shape, generator=generator, device=images.device, dtype=torch.uint8)
    return erase(images, top, left, tall, wide, noise)


def erase(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, noise: Tensor) -> Tensor:
    """Replace the pixels of one rectangle of each image.

    Args:
        images: (N, C, H, W).
        top: First row, (N,).
        left: First column, (N,).
        tall: Number of rows, (N,); 0 leaves an image unchanged.
        wide: Number of columns, (N,).
        noise: Replacement pixels, (N, C, H, W).
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    in_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])  # (N, H)
    in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])  # (N, W)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # (N, 1, H, W)
    return torch.where(inside, noise.to(images.dtype), images)
