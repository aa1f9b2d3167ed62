"""What every command that uses trained members does first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.errors import printable

if TYPE_CHECKING:
    import torch

    from fmcli.checkpoint import Checkpoint
    from fmcli.report.console import Terminal


def open_members(
    places: Sequence[Path], device: torch.device, terminal: Terminal, *, together: bool = True
) -> list[Checkpoint]:
    """Load the members that run folders, member folders and files stand for.

    Args:
        places: From the command line.
        device: Where the networks are wanted.
        terminal: Told what is read, and which members of a run are not trained yet.
        together: They are to answer as one, and must match.

    Raises:
        CheckpointError: One is missing or broken, or does not match.
    """
    from fmcli.checkpoint import find_checkpoints, unfinished_members
    from fmcli.inference import load_members

    paths = find_checkpoints(places)
    for path in paths:
        terminal.detail(f"reading {printable(path)}")
    groups = [paths] if together else [[path] for path in paths]
    members = [member for group in groups for member in load_members(group, device=device)]
    for place, names in unfinished_members(places).items():
        terminal.note(f"not trained yet, so left out: {', '.join(names)} of {printable(place)}")
    return members


def tell_scaling(members: Sequence[Checkpoint], split: str, terminal: Terminal) -> None:
    """Say which members' recipes scale these images otherwise than those that they were trained on."""
    for member in members:
        header = member.header
        if header.normalization_of(split) != header.normalization:
            terminal.note(
                f"{printable(header.member.name)}: {split} pixels are scaled otherwise than in training, "
                "as data.normalize_test of its recipe says"
            )
