"""From a source to the images to train on, to choose on, and to be judged by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmcli.choices import SPLITS
from fmcli.data.image_set import ImageSet
from fmcli.data.sources import Source, load_source
from fmcli.errors import DataError, UsageError, did_you_mean, printable
from fmcli.recipe.data import DataSpec, FirstImages, RandomFraction, Resplit


@dataclass(frozen=True, slots=True)
class Splits:
    """The images of a run.

    Args:
        train: To fit weights on.
        validation: To choose on; None where the recipe sets nothing aside.
        test: To be judged by, once.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet

    def present(self) -> dict[str, ImageSet]:
        """Return the splits that there are, by name."""
        return {name: images for name in SPLITS if (images := getattr(self, name)) is not None}

    def named(self, name: str) -> ImageSet:
        """Return a split by its name.

        Raises:
            UsageError: There is no such name.
            DataError: The recipe sets no validation images aside.
        """
        if name not in SPLITS:
            raise UsageError(f"unknown split {name!r}; {did_you_mean(name, SPLITS)}")
        images: ImageSet | None = getattr(self, name)
        if images is None:
            raise DataError(
                "this recipe sets no validation images aside",
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
    """Split a source as a recipe says.

    Args:
        source: What was read.
        spec: The recipe's `[data]` table.

    Returns:
        The splits; the same source and spec give the same ones.

    Raises:
        DataError: There are too few images for it.
    """
    if spec.resplit is not None:
        return _resplit(source, spec.resplit)
    match spec.validation:
        case None:
            return Splits(source.train, None, source.test)
        case FirstImages(first=first):
            if first >= len(source.train):
                raise DataError(
                    f"data.validation.first = {first} leaves none of {len(source.train)} training images",
                    hint=f"set fewer aside: --set data.validation.first={max(len(source.train) // 6, 1)}",
                )
            _check_none_lost(source.train, slice(first, None))
            return Splits(source.train.subset(slice(first, None)), source.train.subset(slice(first)), source.test)
        case RandomFraction(fraction=fraction, seed=seed, stratify=stratify):
            labels = source.train.labels if stratify else None
            kept, aside = _divide(np.arange(len(source.train)), fraction, seed, labels)
            _check_none_lost(source.train, kept)
            return Splits(source.train.subset(kept), source.train.subset(aside), source.test)
    if source.validation is None:
        raise DataError(
            f"{source.name} has no validation images of its own",
            hint="use validation = { first = 5000 } or { fraction = 0.1 }",
        )
    return Splits(source.train, source.validation, source.test)


def draw_sample(images: ImageSet, size: int, generator: torch.Generator) -> ImageSet:
    """Return so many of the images, drawn with replacement.

    Args:
        images: To draw from.
        size: How many to draw.
        generator: On the CPU.

    References:
        Breiman, Bagging predictors, Machine Learning 24, 1996.
    """
    return images.subset(torch.randint(len(images), (size,), generator=generator).numpy())


def _resplit(source: Source, spec: Resplit) -> Splits:
    images = np.concatenate([source.train.images, source.test.images])
    labels = np.concatenate([source.train.labels, source.test.labels])
    everything = ImageSet(images, labels, source.train.class_names, background=source.train.background)
    order = np.random.default_rng(spec.seed).permutation(len(everything))
    n_train = round(spec.train * len(order))
    n_validation = round(spec.validation * len(order))
    parts = np.split(order, [n_train, n_train + n_validation])
    if len(parts[0]) == 0 or len(parts[2]) == 0 or (spec.validation and len(parts[1]) == 0):
        raise DataError(f"data.resplit leaves a part of {len(order)} images empty", hint="give that part more of them")
    _check_none_lost(everything, parts[0])
    train, validation, test = (everything.subset(part) for part in parts)
    return Splits(train, validation if len(validation) else None, test)


def _divide(
    indices: NDArray[np.int64], fraction: float, seed: int, labels: NDArray[np.int64] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (kept, set aside), as scikit-learn divides them: the reports used it."""
    try:
        from sklearn.model_selection import train_test_split  # slow to import, and seldom needed

        kept, aside = train_test_split(indices, test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        raise DataError(
            f"cannot set {fraction} of {len(indices)} images aside: {error}",
            hint=None
            if labels is None
            else "with data.validation.stratify, each class needs two images, and the part set aside one of each",
        ) from error
    return kept, aside


def _check_none_lost(images: ImageSet, kept: NDArray[Any] | slice) -> None:
    """Refuse to train on no images of a class, as where they are sorted by class and the first are set aside."""
    lost = np.flatnonzero((images.counts() > 0) & (images.subset(kept).counts() == 0))
    if len(lost):
        raise DataError(
            f"all images of {printable(images.class_names[lost[0]])} would be set aside, and none trained on",
            hint="let each class give its share: --set 'data.validation={ fraction = 0.1, stratify = true }'",
        )
