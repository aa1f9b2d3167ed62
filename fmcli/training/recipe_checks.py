"""Check before training that a recipe fits the images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fmcli.data import Splits, load_splits
from fmcli.data.albumentations import AlbumentationsAugment
from fmcli.errors import RecipeError, Remedy, printable
from fmcli.networks.tracing import trace_recipe
from fmcli.recipe import Recipe, SourceFacts
from fmcli.recipe.layers import Backbone, BatchNorm
from fmcli.recipe.tracing import LayerTrace, walk_traces


def load_checked_splits(recipe: Recipe, data_root: Path | None = None) -> Splits:
    """Load a recipe's splits and check that its networks and augmentation fit the images.

    Args:
        recipe: The recipe.
        data_root: First folder to search for built-in datasets and relative paths.

    Raises:
        DataError: The images are missing or damaged.
        RecipeError: A network, a batch size or an augmentation does not fit the images.
    """
    splits = load_splits(recipe.data, data_root)
    check_recipe(recipe, splits)
    return splits


def check_recipe(recipe: Recipe, splits: Splits) -> dict[str, tuple[LayerTrace, ...]]:
    """Check that the networks and the augmentation of a recipe fit the images.

    Args:
        recipe: The recipe.
        splits: The images.

    Returns:
        The layers of each member's network, by the member's name.

    Raises:
        RecipeError: A network, a batch size or an augmentation does not fit the images.
    """
    traces = trace_recipe(recipe, SourceFacts(splits.train.input_shape, splits.train.class_names))
    _check_last_batches(recipe, traces, len(splits.train))
    check_augmentation(recipe, splits.train.input_shape)
    return traces


def _check_last_batches(recipe: Recipe, traces: Mapping[str, Sequence[LayerTrace]], n_train: int) -> None:
    """Refuse a last batch of one image if a batch norm would get single values, which have no variance.

    A backbone counts as having such a batch norm.
    """
    problems = []
    for member in recipe.members:
        trainer = member.trainer
        n_images = trainer.sample_size(n_train)
        size = n_images if trainer.full_batch else min(trainer.batch_size, n_images)
        last = size if trainer.drop_last else n_images % size or size
        has_single_value = any(
            isinstance(trace.layer, Backbone)
            or (isinstance(trace.layer, BatchNorm) and math.prod(trace.input_shape[1:]) == 1)
            for _, trace in walk_traces(traces[member.name])
        )
        if last == 1 and has_single_value:
            problems.append(
                f"members.{member.name}.trainer.batch_size: {n_images} images in batches of {size} leave one image "
                "for the last batch, but batch norm needs at least two"
            )
    if problems:
        raise RecipeError(
            f"recipe {printable(recipe.name)} does not fit {printable(recipe.data.source)}:",
            problems=problems,
            hint="choose a different trainer.batch_size, or skip the last batch",
            remedies=[Remedy("set", "trainer.drop_last=true")],
        )


def check_augmentation(recipe: Recipe, input_shape: tuple[int, int, int] | None) -> None:
    """Build every albumentations pipeline of a recipe and try it on blank images.

    Args:
        recipe: The recipe.
        input_shape: (C, H, W) of the images, or None to skip the trial.

    Raises:
        RecipeError: A pipeline cannot be built, fails, or changes the size of an image.
    """
    for member in recipe.members:
        if member.augment.albumentations:
            AlbumentationsAugment(member.augment.albumentations, input_shape)
