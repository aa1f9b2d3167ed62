"""Write a trained member to disk: checkpoint and validation predictions."""

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
from fmcli.recipe.schedule import CyclicSchedule

VALIDATION_FILE = predictions_file("validation")
_MAX_BACKGROUND_IMAGES = 10_000  # number of training images that `classify_background` looks at


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """Writes the checkpoints of one member.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
        splits: The images.
        normalization: Converts pixels to network input.
        device: The training device.
        bf16: Whether to multiply in bfloat16.
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
        """Write the validation predictions of a network, then its checkpoint, each atomically.

        Args:
            folder: Destination. Predictions of earlier weights are removed from it.
            model: The network.
            logits: float32 (n_samples, n_classes) on the validation images, if there are any.
            epochs: Number of trained epochs.
            snapshot: Number of the snapshot, from 1; None for the member itself.

        Returns:
            Path of the checkpoint.

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
            group=self.spec.model.kernel_group,
        )
        save_predictions(path, predictions)

    def _header(self, model: nn.Module, epochs: int, snapshot: int | None) -> Header:
        train = self.splits.train
        return Header(
            member=self.spec,
            index=self.recipe.members.index(self.spec),
            data=self.recipe.data,
            ensemble=self.recipe.ensemble,
            reference=self.recipe.reference,
            input_shape=train.input_shape,
            class_names=train.class_names,
            mean=self.normalization.mean,
            std=self.normalization.std,
            background=train.background or classify_background(train.sample(_MAX_BACKGROUND_IMAGES).blocks()),
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


def epochs_per_snapshot(spec: MemberSpec) -> int:
    """Return the number of epochs between snapshots. The last snapshot is the member itself."""
    if spec.trainer.keep == "snapshots" and isinstance(spec.schedule, CyclicSchedule):
        return spec.trainer.epochs // spec.schedule.cycles
    return spec.trainer.epochs
