"""Open a path: find out what kind of members it has, and load them."""

from collections.abc import Callable
from pathlib import Path

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.ensemble.file import SUFFIX, read_ensemble_file
from fmcli.errors import CheckpointError, printable
from fmcli.members.member import Member, Opened
from fmcli.members.network import open_networks
from fmcli.members.stored import open_stored


def open_path(path: Path, device: str) -> Opened:
    """Load the members at a path.

    Args:
        path: Run folder, member's folder, checkpoint, ensemble file, pack, predictions file (from fmcli, or a CSV or
            `.npy` file with probabilities), or folder of predictions files.
        device: Device for networks; see `resolve_device`.

    Raises:
        CheckpointError: The path has no members, or a member is missing or damaged.
        DeviceError: The device does not exist.
    """
    for open_ in OPENERS:
        opened = open_(path, device)
        if opened is not None:
            return opened
    return open_networks(path, device)  # its error describes a path without members


def _open_ensemble_file(path: Path, device: str) -> Opened | None:
    """Load the members of an ensemble file, or return None if the path is not an ensemble file."""
    if path.suffix != SUFFIX or not path.is_file():
        return None
    ensemble, paths = read_ensemble_file(path)
    for entry, member in zip(ensemble.members, paths, strict=True):
        if not member.exists():
            raise CheckpointError(
                f"{printable(path)} has the member {printable(entry.name)}, but {printable(member)} does not exist",
                hint="restore it, or create the ensemble again with fmcli ensemble fit or select",
            )
    members = [
        _open_member(member, entry.digest, device) for member, entry in zip(paths, ensemble.members, strict=True)
    ]
    return Opened(members, ensemble)


def _open_member(path: Path, digest: str, device: str) -> Member:
    """Open a member of an ensemble file.

    Raises:
        CheckpointError: The path is an ensemble or has several members, or the weights have changed.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE  # without the member's snapshots
    opened = open_path(path, device) if path.suffix != SUFFIX else None  # an ensemble file could list itself
    if opened is None or opened.ensemble is not None:
        raise CheckpointError(f"{printable(path)} is an ensemble and cannot be a member of another ensemble")
    if len(opened.members) != 1:
        raise CheckpointError(
            f"{printable(path)} has {len(opened.members)} members; an ensemble file must list each of them separately"
        )
    [member] = opened.members
    if digest and member.file_digest not in ("", digest):
        raise CheckpointError(
            f"the weights of {printable(path)} have changed since the ensemble was created",
            hint="create the ensemble again with fmcli ensemble fit or select",
        )
    return member


OPENERS: tuple[Callable[[Path, str], Opened | None], ...] = (_open_ensemble_file, open_stored)
"""Each function loads the members of one kind of path, with networks on a device, or returns None for other kinds."""
