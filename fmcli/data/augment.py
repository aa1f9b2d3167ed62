"""Augmentation: a batch in, a batch out, on the batch's device; and the albumentations path for the host.

Each function first draws its random numbers, one set for each image, from an explicit generator on that
device, and then applies a pure function to the whole batch.
"""

import math
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fmcli.data.albumentations import import_albumentations
from fmcli.errors import RecipeError, did_you_mean
from fmcli.recipe.augment import AlbumentationsSpec, AugmentSpec

_ERASE_ASPECT = 3.3  # longest side over shortest, as in Zhong et al.
_TRIALS = 32  # images that a pipeline is tried on: some of its transforms may act only now and then


def augment(images: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Apply a recipe's augmentation (but for albumentations, which `DeviceLoader` runs before).

    Args:
        images: uint8 (N, C, H, W).
        spec: The recipe's `[augment]` table.
        generator: On the images' device.

    Returns:
        uint8, or float32 in 0 … 255 where pixels were interpolated; same shape.
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
    """Rotate each image about its centre, then move it.

    Args:
        images: float (N, C, H, W).
        rotate: Largest angle in degrees, uniform in ± this.
        translate: Largest move as a fraction of each side, uniform in ± this.
        generator: On the images' device.

    Returns:
        Likewise; what comes in from outside is 0.
    """
    n_images, _, height, width = images.shape
    draws = torch.rand((3, n_images), generator=generator, device=images.device) * 2 - 1  # in [-1, 1)
    return affine(images, draws[0] * rotate, draws[1] * translate * width, draws[2] * translate * height)


def affine(images: Tensor, degrees: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Rotate each image about its centre, then move it; bilinear, zero outside.

    Args:
        images: float (N, C, H, W).
        degrees: (N,), counter-clockwise as seen.
        right: (N,), pixels.
        down: (N,), pixels.

    Returns:
        Likewise.

    References:
        Jaderberg, Simonyan, Zisserman and Kavukcuoglu, "Spatial transformer networks", 2015: a grid of places to
        sample from.
    """
    height, width = images.shape[2:]
    angle = degrees[:, None] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # From output to input, in pixels from the centre: undo the move, then turn back. The grid's unit is half a side.
    # `F.affine_grid` multiplies a matrix for each pixel, which takes several times as long.
    columns = torch.arange(width, device=images.device) - ((width - 1) / 2 + right[:, None])  # (N, W)
    rows = torch.arange(height, device=images.device) - ((height - 1) / 2 + down[:, None])  # (N, H)
    x = (cos * columns * (2 / width))[:, None, :] - (sin * rows * (2 / width))[:, :, None]  # (N, H, W)
    y = (sin * columns * (2 / height))[:, None, :] + (cos * rows * (2 / height))[:, :, None]
    grid = torch.stack([x, y], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_flip(images: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with a probability.

    Args:
        images: (N, C, H, W), any dtype.
        probability: In [0, 1].
        generator: On the images' device.
    """
    chosen = torch.rand(len(images), generator=generator, device=images.device) < probability
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def random_shift(images: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by whole pixels, each way in ± `pixels`.

    Args:
        images: (N, C, H, W), any dtype.
        pixels: Largest move.
        generator: On the images' device.
    """
    steps = torch.randint(-pixels, pixels + 1, (2, len(images)), generator=generator, device=images.device)
    return shift(images, steps[0], steps[1])


def shift(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Move each image by whole pixels; what comes in from outside is 0.

    Args:
        images: (N, C, H, W), any dtype.
        right: int64 (N,).
        down: int64 (N,).
    """
    n_images, channels, height, width = images.shape
    columns = torch.arange(width, device=images.device) - right[:, None]  # (N, W), where each comes from
    rows = torch.arange(height, device=images.device) - down[:, None]  # (N, H)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    places = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # (N, H, W)
    index = places.view(n_images, 1, height * width).expand(-1, channels, -1)
    moved = images.reshape(n_images, channels, height * width).gather(2, index)
    return moved.view_as(images) * inside[:, None].to(images.dtype)


def random_erase(
    images: Tensor, *, probability: float, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Fill a random rectangle of each image with noise, with a probability.

    Args:
        images: (N, C, H, W), uint8 or float in 0 … 255.
        probability: In [0, 1].
        area: Smallest and largest part of the image; less where the rectangle is longer than a side of it.
        generator: On the images' device.

    References:
        Zhong, Zheng, Kang, Li and Yang, "Random erasing data augmentation", AAAI 2020.
    """
    n_images, channels, height, width = images.shape
    draws = torch.rand((5, n_images), generator=generator, device=images.device)
    size = (area[0] + draws[1] * (area[1] - area[0])) * (height * width)
    aspect = torch.exp((draws[2] * 2 - 1) * math.log(_ERASE_ASPECT))
    tall = (size * aspect).sqrt().round().clamp(1, height)
    wide = (size / aspect).sqrt().round().clamp(1, width)
    top = (draws[3] * (height - tall + 1)).floor()
    left = (draws[4] * (width - wide + 1)).floor()
    tall = torch.where(draws[0] < probability, tall, torch.zeros_like(tall))
    shape = (n_images, channels, height, width)
    noise = torch.randint(0, 256, shape, generator=generator, device=images.device, dtype=torch.uint8)
    return erase(images, top, left, tall, wide, noise)


def erase(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, noise: Tensor) -> Tensor:
    """Replace one rectangle of each image.

    Args:
        images: (N, C, H, W).
        top: (N,), the first row.
        left: (N,), the first column.
        tall: (N,), how many rows; 0 for none.
        wide: (N,), how many columns.
        noise: (N, C, H, W), what to put there.
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device)
    column = torch.arange(width, device=images.device)
    in_rows = (row >= top[:, None]) & (row < (top + tall)[:, None])  # (N, H)
    in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])  # (N, W)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # (N, 1, H, W)
    return torch.where(inside, noise.to(images.dtype), images)


# --- albumentations, in worker processes -----------------------------------------------------------------


class AlbumentationsAugment:
    """A pipeline of albumentations transforms that keeps the size of an image.

    Args:
        specs: The recipe's `[[augment.albumentations]]` tables.
        input_shape: (C, H, W) of the images, to try the pipeline on before any training; or None.

    Raises:
        RecipeError: A transform or an argument does not exist, or the pipeline changes shape or dtype.
    """

    def __init__(self, specs: Sequence[AlbumentationsSpec], input_shape: tuple[int, int, int] | None) -> None:
        library = import_albumentations()
        problems: list[str] = []
        transforms = [
            _build_transform(library, spec, f"augment.albumentations[{place}]", problems)
            for place, spec in enumerate(specs)
        ]
        if problems:
            raise RecipeError(
                "the albumentations pipeline cannot be built:",
                problems=problems,
                hint="https://explore.albumentations.ai lists the transforms and their arguments",
            )
        self._compose = library.Compose(transforms)
        if input_shape is not None:
            self._try_on(input_shape)

    def _try_on(self, input_shape: tuple[int, int, int]) -> None:
        channels, height, width = input_shape
        blank = np.zeros((_TRIALS, height, width, channels), dtype=np.uint8)
        try:
            changed = self(blank, seed=0)
        except Exception as error:  # whatever a foreign transform raises is a fault of the recipe
            raise RecipeError(
                f"augment.albumentations fails on a {height}×{width} image of {channels} channels: "
                f"{_first_lines(error)}",
                hint="albumentations' own page of the transform says what images it takes",
            ) from error
        if changed.shape != blank.shape or changed.dtype != np.uint8:
            raise RecipeError(
                f"augment.albumentations turns {blank.shape[1:]} uint8 into {changed.shape[1:]} {changed.dtype}; "
                "it must keep size and dtype",
                hint="end the pipeline with Resize or FromFloat, or leave Normalize to data.normalize",
            )

    def __call__(self, images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment uint8 (N, H, W, C); the same seed gives the same images."""
        # One stream for all: `set_random_seed` would give every transform the same draws.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.stack([self._one(image) for image in images])

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        changed = self._compose(image=np.ascontiguousarray(image))["image"]
        return np.asarray(changed if changed.ndim == 3 else changed[:, :, None])


def _build_transform(library: Any, spec: AlbumentationsSpec, path: str, problems: list[str]) -> Any:
    kind = getattr(library, spec.name, None)
    if not (isinstance(kind, type) and issubclass(kind, library.BasicTransform | library.BaseCompose)):
        names = [name for name in vars(library) if name[0].isupper()]
        problems.append(f"{path}.name: got {spec.name!r}; {did_you_mean(spec.name, names)}")
        return None
    arguments = {key: _tuples(value) for key, value in spec.args.items()}
    combines = issubclass(kind, library.BaseCompose)
    if combines != bool(spec.transforms):
        expected = "needs one or more, beside its args" if combines else "takes none; expected OneOf or its like"
        problems.append(f"{path}.transforms: {spec.name} {expected}")
        return None
    if combines:
        arguments["transforms"] = [
            _build_transform(library, inner, f"{path}.transforms[{place}]", problems)
            for place, inner in enumerate(spec.transforms)
        ]
        if None in arguments["transforms"]:  # already among the problems
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "Argument(s) … are not valid"
        try:
            return kind(**arguments)
        except Exception as error:  # as for a pipeline that fails on an image
            problems.append(f"{path}.args: {_first_lines(error)}")
            return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "further information" not in line]
    return "; ".join(lines[:4]) or type(error).__name__
