"""Split a source into training, validation and test images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcli.data.image_set import ImageSet, Splits
from fmcli.data.sources import load_source
from fmcli.errors import DataError, Remedy, printable
from fmcli.recipe.data import DataSpec, FirstImages, OwnValidation, RandomFraction, Resplit

_SET_FRACTION = Remedy("set", "'data.validation={ fraction = 0.2, stratify = true }'")


def load_splits(spec: DataSpec, data_root: Path | None = None) -> Splits:
    """Load the images of a recipe and split them.

    Args:
        spec: The recipe's `[data]` table.
        data_root: First folder to search for built-in datasets and relative paths.

    Raises:
        DataError: The images are missing or damaged, or there are too few to split.
    """
    return split_images(load_source(spec, data_root=data_root), spec)


def split_images(source: Splits, spec: DataSpec) -> Splits:
    """Split the images of a source as a recipe describes. The same source and spec always give the same splits.

    Args:
        source: Images in the splits of the source.
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
            return replace(source, validation=None)
        case FirstImages(first=first):
            if first >= n_images:
                raise DataError(
                    f"data.validation.first = {first} leaves no training images; the source has {n_images}",
                    hint="set aside fewer images for validation",
                    remedies=[_SET_FRACTION],
                )
            train, validation = slice(first, None), slice(first)
        case RandomFraction(fraction=fraction, seed=seed, stratify=stratify):
            labels = source.train.labels if stratify else None
            train, validation = _divide(np.arange(n_images), fraction, seed, labels)
        case OwnValidation():
            if source.validation is None:
                raise DataError(
                    f"{printable(spec.source)} has no separate validation images",
                    hint="use validation = { first = 5000 } or { fraction = 0.1 } in [data]",
                )
            return source
    _check_classes_remain(source.train, train)
    return replace(source, train=source.train.subset(train), validation=source.train.subset(validation))


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


def _resplit(source: Splits, spec: Resplit) -> Splits:
    images = np.concatenate([source.train.images, source.test.images])
    labels = np.concatenate([source.train.labels, source.test.labels])
    pooled = ImageSet(images, labels, source.train.class_names, background=source.train.background)
    order = np.random.default_rng(spec.seed).permutation(len(pooled))
    n_train = round(spec.train * len(order))
    n_validation = round(spec.validation * len(order))
    parts = np.split(order, [n_train, n_train + n_validation])
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0 and (name != "validation" or spec.validation > 0):
            raise DataError(
                f"data.resplit leaves no {name} images: the source has {len(order)} training and test images",
                hint="change the fractions train and validation in data.resplit",
            )
    _check_classes_remain(pooled, parts[0])
    train, validation, test = (pooled.subset(part) for part in parts)
    return Splits(train, validation if len(validation) else None, test, source.path)


def _divide(
    indices: NDArray[np.int64], fraction: float, seed: int, labels: NDArray[np.int64] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return training and validation indices. scikit-learn draws them, because the reproduced reports used it."""
    from sklearn.model_selection import train_test_split  # slow to import and rarely needed

    try:
        train, validation = train_test_split(indices, test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise DataError(
            f"cannot set aside {fraction} of {len(indices)} training images for validation: {error}",
            hint="use a different data.validation.fraction"
            if labels is None
            else "stratify needs at least two images of each class, and a fraction of at least one image of each class",
        ) from error
    return train, validation


def _check_classes_remain(images: ImageSet, kept: NDArray[Any] | slice) -> None:
    """Refuse a split that leaves a class without training images. This can happen if images are sorted by class."""
    lost = np.flatnonzero((images.counts() > 0) & (images.subset(kept).counts() == 0))
    if len(lost):
        raise DataError(
            f"the split leaves no training images of the class {printable(images.class_names[lost[0]])}",
            hint="set aside the same fraction of each class for validation",
            remedies=[_SET_FRACTION],
        )
