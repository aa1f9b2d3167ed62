"""Write the weights of a member to disk: checkpoint and validation predictions."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fmcli.checkpoints.checkpoint import Header, save_checkpoint, versions
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import SPLITS
from fmcli.data.background import classify_background
from fmcli.ensemble.predictions import Predictions, predictions_file, save_predictions
from fmcli.hardware.device import device_name
from fmcli.recipe import recipe_digest
from fmcli.training.member_setup import MemberSetup

VALIDATION_FILE = predictions_file("validation")
_MAX_BACKGROUND_IMAGES = 10_000  # number of training images that `classify_background` looks at


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    logits: Tensor | None,
    setup: MemberSetup,
    *,
    epochs: int,
    snapshot: int | None = None,
) -> Path:
    """Write the validation predictions of a network, then its checkpoint, each atomically.

    Args:
        folder: Destination. Predictions of earlier weights are removed from it.
        model: The network.
        logits: float32 (n_samples, n_classes) on the validation images, if there are any.
        setup: The member.
        epochs: Number of trained epochs.
        snapshot: Number of the snapshot, from 1; None for the member itself.

    Returns:
        Path of the checkpoint.

    Raises:
        FmcliError: A file cannot be written.
    """
    header = _header(model, setup, epochs, snapshot)
    for split in SPLITS:
        (folder / predictions_file(split)).unlink(missing_ok=True)
    if logits is not None:
        _save_predictions(folder / VALIDATION_FILE, logits, setup, header)
    save_checkpoint(folder / MODEL_FILE, model, header)
    return folder / MODEL_FILE


def _save_predictions(path: Path, logits: Tensor, setup: MemberSetup, header: Header) -> None:
    images = setup.splits.named("validation")
    predictions = Predictions(
        logits=logits.numpy(),
        labels=images.labels,
        class_names=images.class_names,
        member=header.name,
        split="validation",
        data_digest=images.digest,
        recipe_digest=header.recipe_digest,
        group=setup.spec.model.kernel_group,
    )
    save_predictions(path, predictions)


def _header(model: nn.Module, setup: MemberSetup, epochs: int, snapshot: int | None) -> Header:
    spec, recipe, train, normalization = setup.spec, setup.recipe, setup.splits.train, setup.loaders.normalization
    initial_weights = setup.fingerprint.weights
    return Header(
        member=spec,
        index=setup.index,
        data=recipe.data,
        ensemble=recipe.ensemble,
        reference=recipe.reference,
        input_shape=train.input_shape,
        class_names=train.class_names,
        mean=normalization.mean,
        std=normalization.std,
        background=train.background or classify_background(train.sample(_MAX_BACKGROUND_IMAGES).blocks()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=epochs,
        snapshot=snapshot,
        data_digests={name: images.digest for name, images in setup.splits.present().items()},
        recipe_digest=recipe_digest(spec, recipe.data),
        versions=versions(),
        trained_on={
            "device": device_name(setup.device),
            "precision": "bf16" if setup.bf16 else "fp32",
            "threads": str(torch.get_num_threads()),
        }
        | ({} if initial_weights is None else {"initial_weights": initial_weights}),
    )
