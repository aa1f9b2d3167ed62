"""What a training leaves: checkpoints with their headers, and validation predictions."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fmcli.checkpoints.checkpoint import Header, save_checkpoint, versions
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import SPLITS
from fmcli.data import Normalization, Splits
from fmcli.data.background import classify_background
from fmcli.ensemble.predictions import Predictions, predictions_file, save_predictions
from fmcli.hardware.device import device_name
from fmcli.recipe import MemberSpec, Recipe, recipe_digest
from fmcli.recipe.families import kernel_group

VALIDATION_FILE = predictions_file("validation")
_BORDERS = 10_000  # training images whose borders are looked at


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """What is the same for all weights that a member's training leaves.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
        splits: The images.
        normalization: From pixels to network input.
        device: Where the training is done.
        bf16: Whether it multiplies in bfloat16.
    """

    spec: MemberSpec
    recipe: Recipe
    splits: Splits
    normalization: Normalization
    device: torch.device
    bf16: bool

    def save(
        self, folder: Path, model: nn.Module, logits: Tensor | None, *, epochs: int, snapshot: int | None = None
    ) -> Path:
        """Leave a checkpoint of a network, and before it the validation predictions, each whole or not at all.

        Args:
            folder: Where to; predictions of earlier weights there are removed.
            model: The network.
            logits: float32 (n_samples, n_classes), what it answers on the validation images, if there are any.
            epochs: How many it was trained for.
            snapshot: Which of the member's snapshots it is, from 1; None for the member itself.

        Returns:
            The checkpoint's file.

        Raises:
            FmcliError: A file cannot be written.
        """
        header = self._header(model, epochs, snapshot)
        for split in SPLITS:
            (folder / predictions_file(split)).unlink(missing_ok=True)
        if logits is not None:
            self._save_predictions(folder / VALIDATION_FILE, logits, header)
        save_checkpoint(folder / MODEL_FILE, model, header)
        return folder / MODEL_FILE

    def _save_predictions(self, path: Path, logits: Tensor, header: Header) -> None:
        images = self.splits.named("validation")
        predictions = Predictions(
            logits=logits.numpy(),
            labels=images.labels,
            class_names=images.class_names,
            member=header.name,
            split="validation",
            data_digest=images.digest,
            recipe_digest=header.recipe_digest,
            group=kernel_group(self.spec.model),
        )
        save_predictions(path, predictions)

    def _header(self, model: nn.Module, epochs: int, snapshot: int | None) -> Header:
        train = self.splits.train
        return Header(
            member=self.spec,
            data=self.recipe.data,
            ensemble=self.recipe.ensemble,
            reference=self.recipe.reference,
            input_shape=train.input_shape,
            class_names=train.class_names,
            mean=self.normalization.mean,
            std=self.normalization.std,
            background=train.background or classify_background(train.sample(_BORDERS).blocks()),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            epochs=epochs,
            snapshot=snapshot,
            data_digests={name: images.digest for name, images in self.splits.present().items()},
            recipe_digest=recipe_digest(self.spec, self.recipe.data),
            versions=versions(),
            trained_on={
                "device": device_name(self.device),
                "precision": "bf16" if self.bf16 else "fp32",
                "threads": str(torch.get_num_threads()),
            },
        )
