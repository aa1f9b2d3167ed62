"""Checks before a run is resumed: the files of an earlier process must come from the same training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import load_checkpoint
from fmcli.checkpoints.layout import MODEL_FILE, missing_snapshots, snapshot_name
from fmcli.errors import Action, CheckpointError, Remedy, printable
from fmcli.recipe import MemberSpec
from fmcli.training.fingerprint import Fingerprint, recipe_of_header

_MAX_LISTED_DIFFERENCES = 10


@dataclass(frozen=True, slots=True)
class Wording:
    """How a message describes the earlier training and the consequence of a difference."""

    was: str
    consequence: str  # follows "; " and contains {now}
    remedies: tuple[Action, ...]


STARTED = Wording("was started", "resuming {now} would change its results", ("overwrite",))
FINISHED = Wording("was trained", "the rest of its run would be trained {now}", ("output",))
PLANNED = Wording("was planned", "it would now be trained {now}", ("resume", "overwrite"))


def check_fingerprint(now: Fingerprint, earlier: Fingerprint, wording: Wording, *, member: str, folder: Path) -> None:
    """Refuse to train if the results would differ from those of an earlier process.

    Args:
        now: The fingerprint of the training that is about to start.
        earlier: The fingerprint of the earlier training.
        wording: `STARTED` for a partly trained member, `FINISHED` for a trained one, `PLANNED` if the run was planned
            by this or a parent process.
        member: Name of the earlier member.
        folder: Folder of its files, for the message.

    Raises:
        CheckpointError: A fingerprint value differs.
    """
    check_recipe_and_data(now, earlier.recipe, earlier.data, wording, member=member, folder=folder)
    for difference in now.environment_differences(earlier):
        raise _error(wording, member, folder, difference.before, difference.now, difference.remedy)


def check_recipe_and_data(
    now: Fingerprint, recipe: str, data: Mapping[str, str], wording: Wording, *, member: str, folder: Path
) -> None:
    """Refuse to train if the recipe or the images differ from those of an earlier process.

    Args:
        now: The fingerprint of the training that is about to start.
        recipe: The earlier recipe, as in `Fingerprint`.
        data: SHA-256 of the earlier images, by split.
        wording: See `check_fingerprint`.
        member: Name of the earlier member.
        folder: Folder of its files, for the message.

    Raises:
        CheckpointError: A value differs.
    """
    for difference in now.data_differences(data):
        raise _error(wording, member, folder, difference.before, difference.now, difference.remedy)
    lines = now.recipe_differences(recipe)
    if lines:
        raise CheckpointError(
            f"member {member} in {printable(folder)} {wording.was} with another recipe:\n  "
            + "\n  ".join(lines[:_MAX_LISTED_DIFFERENCES]),
            hint="restore these values in the recipe",
            remedies=wording.remedies,
        )


def _error(wording: Wording, member: str, folder: Path, before: str, now: str, remedy: str | Remedy) -> CheckpointError:
    return CheckpointError(
        f"member {member} in {printable(folder)} {wording.was} {before}; {wording.consequence.format(now=now)}",
        hint=remedy if isinstance(remedy, str) else None,
        remedies=[*([remedy] if isinstance(remedy, Remedy) else []), *wording.remedies],
    )


def check_trained(spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse a trained member if its recipe or images differ, or if snapshots are missing.

    Args:
        spec: The member's recipe.
        folder: The member's folder.
        fingerprint: Fingerprint of the current training.

    Raises:
        CheckpointError: The checkpoint does not match, is damaged, or lacks snapshots.
    """
    _check_checkpoint(folder / MODEL_FILE, spec, folder, fingerprint)
    missing = missing_snapshots(spec, folder)
    if missing:
        raise CheckpointError(
            f"member {spec.name} in {printable(folder)} is trained, but {', '.join(missing)} is missing",
            hint="restore the file",
            remedies=["overwrite"],
        )


def check_snapshot(number: int, spec: MemberSpec, folder: Path, fingerprint: Fingerprint) -> None:
    """Refuse to resume a member if the snapshot of a finished cycle is missing, damaged or of another training.

    Args:
        number: Number of the snapshot, from 1.
        spec: The member's recipe.
        folder: The member's folder.
        fingerprint: Fingerprint of the current training.

    Raises:
        CheckpointError: The snapshot is missing, damaged or does not match.
    """
    try:
        _check_checkpoint(folder / snapshot_name(number) / MODEL_FILE, spec, folder, fingerprint)
    except CheckpointError as error:
        raise CheckpointError(
            f"member {spec.name} cannot resume without its snapshot {number}: {error.message}",
            hint="restore the file",
            remedies=["overwrite"],
        ) from error


def _check_checkpoint(path: Path, spec: MemberSpec, folder: Path, now: Fingerprint) -> None:
    header = load_checkpoint(path, device=torch.device("cpu")).header
    check_recipe_and_data(now, recipe_of_header(header), header.data_digests, STARTED, member=spec.name, folder=folder)
