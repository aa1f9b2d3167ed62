"""The image loaders of a member."""

from dataclasses import dataclass

import torch

from fmcli.data import (
    DeviceLoader,
    Normalization,
    Splits,
    draw_sample,
    evaluation_loader,
    resolve_normalization,
)
from fmcli.data.albumentations import AlbumentationsAugment
from fmcli.recipe import MemberSpec, Recipe


@dataclass(frozen=True, slots=True)
class Loaders:
    """The images that a member is trained and validated on.

    Args:
        train: The training images, or the member's bootstrap sample of them.
        unaugmented: The same images in order, without worker processes, for batch norm statistics; None unless the
            recipe averages the weights of the last epochs.
        validation: The validation images, if there are any.
        normalization: Converts pixels to network input.
    """

    train: DeviceLoader
    unaugmented: DeviceLoader | None
    validation: DeviceLoader | None
    normalization: Normalization


def build_loaders(
    spec: MemberSpec, recipe: Recipe, splits: Splits, device: torch.device, sample: torch.Generator
) -> Loaders:
    """Return the loaders of a member.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
        splits: The images.
        device: The training device.
        sample: Draws the bootstrap sample of `trainer.bagging`.
    """
    train, pipeline = splits.train, spec.augment.albumentations
    if spec.trainer.bagging is not None:
        train = draw_sample(train, spec.trainer.sample_size(len(train)), sample)
    return Loaders(
        train=DeviceLoader(
            train,
            batch_size=len(train) if spec.trainer.full_batch else spec.trainer.batch_size,
            device=device,
            drop_last=spec.trainer.drop_last,
            transform=AlbumentationsAugment(pipeline, train.input_shape) if pipeline else None,
        ),
        unaugmented=None if spec.trainer.swa is None else evaluation_loader(train, device),
        validation=None if splits.validation is None else evaluation_loader(splits.validation, device),
        normalization=resolve_normalization(recipe.data.normalize, splits.train),
    )
