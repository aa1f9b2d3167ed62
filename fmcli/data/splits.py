"""Split a source into training, validation and test images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcli.choices import SPLITS
from fmcli.data.image_set import ImageSet
from fmcli.data.sources import Source, load_source
from fmcli.errors import DataError, Remedy, UsageError, did_you_mean, printable
from fmcli.recipe.data import DataSpec, FirstImages, RandomFraction, Resplit


@dataclass(frozen=True, slots=True)
class Splits:
    """The images of a run.

    Args:
        train: Images to fit weights on.
        validation: Images to make choices on, or None if the recipe has none.
        test: Images for the final score; no choice depends on them.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet

    def present(self) -> dict[str, ImageSet]:
        """Return the splits that exist, by name."""
        return {name: images for name in SPLITS if (images := getattr(self, name)) is not None}

    def named(self, name: str) -> ImageSet:
        """Return a split by its name.

        Raises:
            UsageError: The name is unknown.
            DataError: The recipe has no validation split.
        """
        if name not in SPLITS:
            raise UsageError(f"unknown split {name!r}; {did_you_mean(name, SPLITS)}")
        images: ImageSet | None = getattr(self, name)
        if images is None:
            raise DataError(
                "this recipe has no validation images",
                hint="add validation = { first = 5000 } to its [data]",
            )
        return images


def load_splits(spec: DataSpec, data_root: Path | None = None) -> Splits:
    """Load the images that a recipe names and split them.

    Args:
        spec: The recipe's `[data]` table.
        data_root: First folder to search for built-in datasets and relative paths.

    Raises:
        DataError: The images are missing or damaged, or there are too few to split.
    """
    return split_images(load_source(spec, data_root=data_root), spec)


def split_images(source: Source, spec: DataSpec) -> Splits:
    """Split a source as a recipe asks; the same source and spec always give the same splits.

    Args:
        source: Published images.
        spec: The recipe's `[data]` table.

    Raises:
        DataError: There are too few images.
    """
    if spec.resplit is not None:
        return _resplit(source, spec.resplit)
    n_images = len(source.train)
    train: NDArray[Any] | slice
    validation: NDArray[Any] | slice
    match spec.validation:
        case None:
            return Splits(source.train, None, source.test)
        case FirstImages(first=first):
            if first >= n_images:
                raise DataError(
                    f"data.validation.first = {first} leaves none of {n_images} training images",
                    hint="use fewer for validation",
                    remedies=[Remedy("set", f"data.validation.first={max(n_images // 6, 1)}")],
                )
            train, validation = slice(first, None), slice(first)
        case RandomFraction(fraction=fraction, seed=seed, stratify=stratify):
            labels = source.train.labels if stratify else None
            train, validation = _divide(np.arange(n_images), fraction, seed, labels)
        case _:
            if source.validation is None:
                raise DataError(
                    f"{source.name} has no separate validation images",
                    hint="use validation = { first = 5000 } or { fraction = 0.1 } in [data]",
                )
            return Splits(source.train, source.validation, source.test)
    _check_classes_remain(source.train, train)
    return Splits(source.train.subset(train), source.train.subset(validation), source.test)


def draw_sample(images: ImageSet, size: int, generator: torch.Generator) -> ImageSet:
    """Return a bootstrap sample: images drawn with replacement.

    Args:
        images: Images to draw from.
        size: Number of draws.
        generator: CPU generator.

    References:
        Breiman, Bagging predictors, Machine Learning 24, 1996.
    """
    return images.subset(torch.randint(len(images), (size,), generator=generator).numpy())


def _resplit(source: Source, spec: Resplit) -> Splits:
    images = np.concatenate([source.train.images, source.test.images])
    labels = np.concatenate([source.train.labels, source.test.labels])
    pooled = ImageSet(images, labels, source.train.class_names, background=source.train.background)
    order = np.random.default_rng(spec.seed).permutation(len(pooled))
    n_train = round(spec.train * len(order))
    n_validation = round(spec.validation * len(order))
    parts = np.split(order, [n_train, n_train + n_validation])
    if len(parts[0]) == 0 or len(parts[2]) == 0 or (spec.validation and len(parts[1]) == 0):
        raise DataError(
            f"data.resplit of {len(order)} images leaves a split empty", hint="give that split a larger fraction"
        )
    _check_classes_remain(pooled, parts[0])
    train, validation, test = (pooled.subset(part) for part in parts)
    return Splits(train, validation if len(validation) else None, test)


def _divide(
    indices: NDArray[np.int64], fraction: float, seed: int, labels: NDArray[np.int64] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (training, validation) indices as scikit-learn divides them, because the reproduced reports used it."""
    from sklearn.model_selection import train_test_split  # slow to import and rarely needed

    try:
        train, validation = train_test_split(indices, test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise DataError(
            f"cannot use a fraction of {fraction} of {len(indices)} training images for validation: {error}",
            hint=None
            if labels is None
            else "data.validation.stratify needs two images of each class, and one of each in the validation split",
        ) from error
    return train, validation


def _check_classes_remain(images: ImageSet, kept: NDArray[Any] | slice) -> None:
    """Refuse a split that leaves a class without training images, which happens if images are sorted by class."""
    lost = np.flatnonzero((images.counts() > 0) & (images.subset(kept).counts() == 0))
    if len(lost):
        raise DataError(
            f"the split leaves no training images of the class {printable(images.class_names[lost[0]])}",
            hint="use the same fraction of each class for validation",
            remedies=[Remedy("set", "'data.validation={ fraction = 0.1, stratify = true }'")],
        )
