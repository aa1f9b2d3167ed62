"""Augment images on the host with albumentations."""

import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.errors import RecipeError, did_you_mean
from fmcli.recipe.augment import AlbumentationsSpec

_TRIAL_IMAGES = 32  # several, because many transforms change an image only with some probability


def import_albumentations() -> Any:
    """Import albumentations without its check for updates and without OpenCV's threads."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # OpenCV's threads would compete with the worker processes for the same cores
    return albumentations


class AlbumentationsAugment:
    """A pipeline of albumentations transforms that keeps the shape of the images.

    Args:
        specs: The recipe's `[[augment.albumentations]]` tables.
        input_shape: (C, H, W) of the images, to try the pipeline on blank images; None to skip the trial.

    Raises:
        RecipeError: A transform or an argument does not exist; or the pipeline fails, or changes shape or dtype.
    """

    def __init__(self, specs: Sequence[AlbumentationsSpec], input_shape: tuple[int, int, int] | None) -> None:
        library = import_albumentations()
        problems: list[str] = []
        transforms = [
            _build_transform(library, spec, f"augment.albumentations[{index}]", problems)
            for index, spec in enumerate(specs)
        ]
        if problems:
            raise RecipeError(
                "the albumentations pipeline cannot be built:",
                problems=problems,
                hint="see https://explore.albumentations.ai for the transforms and their arguments",
            )
        self._compose = library.Compose(transforms)
        if input_shape is not None:
            self._try_on(input_shape)

    def _try_on(self, input_shape: tuple[int, int, int]) -> None:
        channels, height, width = input_shape
        blank = np.zeros((_TRIAL_IMAGES, height, width, channels), dtype=np.uint8)
        try:
            augmented = self(blank, seed=0)
        except Exception as error:  # transforms raise many types
            raise RecipeError(
                f"augment.albumentations fails on a {height}×{width} image with {channels} channels: "
                f"{_first_lines(error)}",
                hint="check in the documentation of the transforms which images they accept",
            ) from error
        if augmented.shape != blank.shape or augmented.dtype != np.uint8:
            raise RecipeError(
                f"augment.albumentations changes images of shape {blank.shape[1:]} and dtype uint8 to shape "
                f"{augmented.shape[1:]} and dtype {augmented.dtype}; shape and dtype must not change",
                hint="end the pipeline with Resize or FromFloat; use data.normalize instead of Normalize",
            )

    def __call__(self, images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Return augmented images, uint8 (N, H, W, C). The same seed gives the same images."""
        # `set_random_seed` would give every transform the same draws, so all transforms share one generator.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return np.stack([self._augment(image) for image in images])

    def _augment(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.atleast_3d(self._compose(image=np.ascontiguousarray(image))["image"])


def _build_transform(library: Any, spec: AlbumentationsSpec, path: str, problems: list[str]) -> Any:
    """Return a transform; or append a problem to the list and return None."""
    transform = getattr(library, spec.name, None)
    if not (isinstance(transform, type) and issubclass(transform, library.BasicTransform | library.BaseCompose)):
        names = [name for name in vars(library) if name[0].isupper()]
        problems.append(f"{path}.name: got {spec.name!r}; {did_you_mean(spec.name, names)}")
        return None
    arguments = {key: _to_tuples(value) for key, value in spec.args.items()}
    combines = issubclass(transform, library.BaseCompose)
    if combines != bool(spec.transforms):
        expected = "needs at least one transform" if combines else "cannot contain transforms; use OneOf, for example"
        problems.append(f"{path}.transforms: {spec.name} {expected}")
        return None
    if combines:
        arguments["transforms"] = [
            _build_transform(library, inner, f"{path}.transforms[{index}]", problems)
            for index, inner in enumerate(spec.transforms)
        ]
        if None in arguments["transforms"]:
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # albumentations only warns about unknown arguments
        try:
            return transform(**arguments)
        except Exception as error:  # transforms raise many types for invalid arguments
            problems.append(f"{path}.args: {_first_lines(error)}")
            return None


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(inner) for inner in value) if isinstance(value, list) else value


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "further information" not in line]
    return "; ".join(lines[:4]) or type(error).__name__
