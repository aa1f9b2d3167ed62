"""What an earlier process left of a member: refused where it does not belong to the training that goes on with it."""

from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import load_checkpoint
from fmcli.checkpoints.layout import MODEL_FILE, missing_snapshots, snapshot_name
from fmcli.errors import CheckpointError, printable
from fmcli.recipe import MemberSpec
from fmcli.training.fingerprint import Fingerprint


def check_trained(spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse a trained member of another recipe or other images, or one that has lost snapshots.

    Args:
        spec: The member's recipe.
        folder: Where its files lie.
        fingerprint: Of the training that goes on.

    Raises:
        CheckpointError: It is one of these, or damaged.
    """
    _check_checkpoint(folder / MODEL_FILE, spec, folder, fingerprint)
    missing = missing_snapshots(spec, folder)
    if missing:
        raise CheckpointError(
            f"member {spec.name} in {printable(folder)} is trained, and lacks {', '.join(missing)}",
            hint="bring the file back, or train afresh with --overwrite",
        )


def check_snapshot(number: int, spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse to go on where the snapshot of a cycle that is over is gone, damaged or of another training.

    Args:
        number: Which one, from 1.
        spec: The member's recipe.
        folder: Where its files lie.
        fingerprint: Of the training that goes on.

    Raises:
        CheckpointError: It is one of these.
    """
    try:
        _check_checkpoint(folder / snapshot_name(number) / MODEL_FILE, spec, folder, fingerprint)
    except CheckpointError as error:
        raise CheckpointError(
            f"member {spec.name} cannot go on without its snapshot {number}: {error.message}",
            hint="bring the file back, or train afresh with --overwrite",
        ) from error


def _check_checkpoint(path: Path, spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    header = load_checkpoint(path, device=torch.device("cpu")).header
    fingerprint.check_header(header, member=spec.name, folder=folder)
