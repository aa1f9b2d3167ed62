"""Members with a PyTorch network: the checkpoints of runs, and the members of packs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmcli.checkpoints.layout import MODEL_FILE, find_checkpoints
from fmcli.choices import SPLITS, Views
from fmcli.ensemble.predictions import Predictions
from fmcli.members.inference import predict_splits
from fmcli.members.member import ImageBatch, Opened, TrainingFacts
from fmcli.storage.reading import read_metadata

if TYPE_CHECKING:  # torch takes seconds to import, so it is only imported to open a network
    from fmcli.checkpoints.checkpoint import Checkpoint
    from fmcli.networks.inference import InferenceNetwork


@dataclass(frozen=True, eq=False)
class NetworkMember:
    """A member with a PyTorch network. See `Member` for the attributes.

    Args:
        checkpoint: The loaded checkpoint. Its path is the checkpoint file or the pack.
        file: The checkpoint file. In a pack, the file that unpacking would write.
    """

    checkpoint: Checkpoint
    file: Path
    is_external = False

    @property
    def name(self) -> str:
        """Name of the member, or of its snapshot."""
        return self.checkpoint.name

    @property
    def group(self) -> str:
        """Group in a two-level vote: the kernel sizes of the network."""
        return self.checkpoint.group

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return self.checkpoint.header.class_names

    @property
    def path(self) -> Path:
        """Folder of the checkpoint; the checkpoint file if it has an unusual name; or the pack."""
        path = self.checkpoint.path
        return path.parent if path.name == MODEL_FILE and not self.in_pack else path

    @property
    def in_pack(self) -> bool:
        """Whether the member is in a pack."""
        return self.file != self.checkpoint.path

    @property
    def file_digest(self) -> str:
        """Digest of the checkpoint file."""
        return read_metadata(self.checkpoint.path).get("digest", "")

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return self.checkpoint.weights_digest

    @cached_property
    def training(self) -> TrainingFacts:
        """Facts from the header of the checkpoint."""
        header = self.checkpoint.header
        return TrainingFacts(
            data=header.data,
            ensemble=header.ensemble,
            reference=header.reference,
            input_shape=header.input_shape,
            background=header.background,
            data_digests=header.data_digests,
            recipe_digest=header.recipe_digest,
            differently_normalized=tuple(
                split for split in SPLITS if header.normalization_of(split) != header.normalization
            ),
        )

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits of the recipe."""
        return self.training.data_digests

    def count_missing(self, split: str, labels: Path | None) -> int:
        """Return 0: the images of a split have labels and classes."""
        return 0

    def predict(
        self,
        split: str,
        *,
        data_root: Path | None = None,
        labels: Path | None = None,
        reference: Predictions | None = None,
    ) -> Predictions:
        """Predict the images of a split of the recipe; see `predict_splits`."""
        [predictions] = predict_splits([self], split, data_root=data_root)
        return predictions

    def predict_images(self, batch: ImageBatch, *, views: Views = "none") -> NDArray[np.float32]:
        """Return the logits of a batch; see `Member.predict_images`.

        Members on the same device share the pixels there. Members with the same normalization also share its result.
        """
        import torch

        from fmcli.networks.inference import mean_logits, normalized_views

        device = self.checkpoint.device
        normalization = self.checkpoint.header.normalization_of(batch.split)
        with torch.inference_mode():
            pixels = batch.derive(device, lambda: torch.from_numpy(batch.pixels).to(device))
            inputs = batch.derive(
                (device, normalization, views), lambda: list(normalized_views(pixels, normalization, views))
            )
            logits: NDArray[np.float32] = mean_logits(self._network, inputs).cpu().numpy()
        return logits

    @cached_property
    def _network(self) -> InferenceNetwork:
        return inference_network(self.checkpoint)


def inference_network(checkpoint: Checkpoint) -> InferenceNetwork:
    """Return the network for prediction, in the precision that its recipe uses for training on its device."""
    from fmcli.hardware.device import use_bf16
    from fmcli.networks.inference import InferenceNetwork

    precision = checkpoint.header.member.trainer.precision
    return InferenceNetwork(checkpoint.model, bf16=use_bf16(precision, checkpoint.device))


def open_networks(path: Path, device: str) -> Opened:
    """Load the networks of a run folder, a member's folder, a checkpoint or a pack.

    Args:
        path: The path.
        device: Device for the networks; see `resolve_device`.

    Raises:
        CheckpointError: There is no checkpoint or pack, or it is damaged.
        DeviceError: The device does not exist.
    """
    from fmcli.checkpoints.checkpoint import load_checkpoint
    from fmcli.checkpoints.pack import is_pack, read_pack
    from fmcli.hardware.device import resolve_device

    resolved = resolve_device(device)
    if path.is_file() and is_pack(path):
        ensemble, checkpoints = read_pack(path, device=resolved)
        files = [path / entry.name / MODEL_FILE for entry in ensemble.members]
        return Opened([NetworkMember(one, file) for one, file in zip(checkpoints, files, strict=True)], ensemble)
    return Opened([NetworkMember(load_checkpoint(file, device=resolved), file) for file in find_checkpoints(path)])
