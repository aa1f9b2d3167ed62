"""A recipe's images, and what must be right between the two before any training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmcli.data import Splits, load_splits
from fmcli.data.augment import AlbumentationsAugment
from fmcli.errors import RecipeError, printable
from fmcli.recipe import Recipe, SourceFacts
from fmcli.recipe.layers import BatchNorm
from fmcli.recipe.tracing import LayerTrace, trace_recipe


def load_checked_splits(recipe: Recipe, data_root: Path | None = None) -> Splits:
    """Return a recipe's images, having found all that is wrong between them and the recipe.

    Args:
        recipe: The recipe.
        data_root: Where to look first for built-in sources.

    Raises:
        DataError: The images are missing or broken.
        RecipeError: A network or an augmentation does not fit them.
    """
    splits = load_splits(recipe.data, data_root)
    traces = trace_recipe(recipe, SourceFacts(splits.train.input_shape, splits.train.class_names))
    _check_last_batches(recipe, traces, len(splits.train))
    check_augmentation(recipe, splits.train.input_shape)
    return splits


def _check_last_batches(recipe: Recipe, traces: Mapping[str, Sequence[LayerTrace]], n_train: int) -> None:
    """Refuse a batch of one image where that leaves batch normalisation one value, which has no spread."""
    problems = []
    for member in recipe.members:
        trainer = member.trainer
        n_images = trainer.sample_size(n_train)
        size = n_images if trainer.full_batch else min(trainer.batch_size, n_images)
        last = size if trainer.drop_last else n_images % size or size
        of_one_value = any(
            isinstance(trace.layer, BatchNorm) and math.prod(trace.input_shape[1:]) == 1
            for trace in traces[member.name]
        )
        if last == 1 and of_one_value:
            problems.append(
                f"members.{member.name}.trainer.batch_size: the last batch of {n_images} images by {size} has one, "
                "and batch normalisation needs more"
            )
    if problems:
        raise RecipeError(
            f"recipe {printable(recipe.name)} does not fit {printable(recipe.data.source)}:",
            problems=problems,
            hint="another trainer.batch_size, or --set trainer.drop_last=true, which leaves that image out",
        )


def check_augmentation(recipe: Recipe, input_shape: tuple[int, int, int] | None) -> None:
    """Build every albumentations pipeline of a recipe once, and try it on blank images.

    Args:
        recipe: The recipe.
        input_shape: (C, H, W) of its images; None where it is not known yet: then nothing is tried.

    Raises:
        RecipeError: One cannot be built, or changes an image's size.
    """
    for member in recipe.members:
        if member.augment.albumentations:
            AlbumentationsAugment(member.augment.albumentations, input_shape)
