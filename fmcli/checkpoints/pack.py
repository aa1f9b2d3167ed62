"""Packs: an ensemble as one file, with every member, the rule, what was learnt for it, and the run that it is from.

A pack is a safetensors file. Under `model.N.` it has the weights of member N, under `file.N.` other files of its
folder as bytes; the text says the rest.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fmcli.checkpoints.checkpoint import Checkpoint, build_checkpoint, parse_header
from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import (
    MODEL_FILE,
    RECIPE_FILE,
    find_checkpoints,
    is_snapshot_name,
    lost_snapshots,
    members_of_run,
)
from fmcli.checkpoints.tensors import load_tensors, save_tensors, with_prefix, without_prefix
from fmcli.ensemble import Combiner
from fmcli.ensemble.file import (
    SUFFIX,
    EnsembleFile,
    FittedOn,
    MemberPath,
    describe_ensemble,
    first_problem,
    write_ensemble_file,
)
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, Remedy, UsageError, printable
from fmcli.recipe.load import read_text
from fmcli.storage.atomic import folder_names, new_folder, write_atomic
from fmcli.storage.reading import check_format, read_bytes

PACK_FORMAT = "fmcli-pack-1"
ENSEMBLE_FILE = "ensemble.toml"
_CARRIED = (HISTORY_FILE, predictions_file("validation"))
"""Files of a member's folder that go with its weights."""
LARGEST_CARRIED = 1 << 30  # bytes


class _Contents(BaseModel):
    """The text of a pack.

    Args:
        ensemble: The rule and the members, whose paths are their folders when they are unpacked: `k3`, or
            `k3/snapshot-1`.
        headers: The text of each member's checkpoint.
        recipe: Of the run whose members these are, all of them and no others; else empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: EnsembleFile
    headers: tuple[dict[str, str], ...] = Field(min_length=1)
    recipe: str = ""


@dataclass(frozen=True, slots=True)
class Pack:
    """An ensemble in one file.

    Args:
        names: The members' names.
        members: Their networks, all of them with the pack as their path.
        rule: How to combine them.
        fitted_on: The images that it was made on; None where there were none.
    """

    names: tuple[str, ...]
    members: tuple[Checkpoint, ...]
    rule: Combiner
    fitted_on: FittedOn | None


def write_pack(path: Path, places: Sequence[MemberPath], rule: Combiner, fitted_on: FittedOn | None = None) -> None:
    """Write members and their rule as one file.

    Args:
        path: The file.
        places: The members' checkpoint files, in the rule's order, with names that differ.
        rule: With all that was learnt.
        fitted_on: The images that it was learnt on.

    Raises:
        CheckpointError: A member is broken.
        FmcliError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    headers = []
    for number, place in enumerate(places):
        header, weights = load_tensors(place.path)
        headers.append(dict(sorted(header.items())))  # safetensors gives it in any order
        tensors |= with_prefix(f"model.{number}", weights)
        for name in _CARRIED:
            file = place.path.parent / name
            if file.is_file():
                content = read_bytes(file, LARGEST_CARRIED, CheckpointError)
                tensors[f"file.{number}.{name}"] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    folders = _member_folders([place.name for place in places])
    inside = [MemberPath(place.name, Path(folder), place.digest) for place, folder in zip(places, folders, strict=True)]
    contents = _Contents(
        ensemble=describe_ensemble(inside, rule, None, fitted_on),
        headers=tuple(headers),
        recipe=_recipe_of_all(places, folders),
    )
    save_tensors(path, tensors, {"format": PACK_FORMAT, "pack": contents.model_dump_json(exclude_none=True)})


def _member_folders(names: Sequence[str]) -> list[str]:
    """Return a folder for each member; a snapshot's lies in its member's."""
    parts = [_split_snapshot(name) for name in names]
    members = list(dict.fromkeys(member for member, _ in parts))
    folder_of = dict(zip(members, folder_names(members), strict=True))
    return ["/".join(part for part in (folder_of[member], snapshot) if part) for member, snapshot in parts]


def _split_snapshot(name: str) -> tuple[str, str]:
    """Return a member's name without and with its snapshot: `k3/snapshot-1` is `k3` and `snapshot-1`."""
    member, _, last = name.rpartition("/")
    return (member, last) if member and is_snapshot_name(last) else (name, "")


def _recipe_of_all(places: Sequence[MemberPath], folders: Sequence[str]) -> str:
    """Return the recipe of the run whose members these are, all of them and no others; else nothing."""
    files = [place.path.resolve() for place in places]
    run = Path(*files[0].parts[: -1 - len(PurePosixPath(folders[0]).parts)])
    names = set(members_of_run(run))
    if names != {PurePosixPath(folder).parts[0] for folder in folders} or lost_snapshots([run]):
        return ""
    same = {run / folder / MODEL_FILE for folder in folders} == set(files) == set(find_checkpoints([run]))
    return read_text(run / RECIPE_FILE) if same else ""


def _read(path: Path) -> tuple[_Contents, dict[str, Tensor]]:
    if path.is_dir():
        raise CheckpointError(
            f"{printable(path)} is a folder, and a pack is a file",
            hint=f"fmcli ensemble pack {printable(path)} --output FILE.safetensors makes one",
        )
    if not path.is_file():
        raise CheckpointError(
            f"there is no pack at {printable(path)}", hint="fmcli ensemble pack RUN --output FILE.safetensors makes one"
        )
    if path.suffix == SUFFIX:
        raise CheckpointError(
            f"{printable(path)} is not a pack; an ensemble file names members that lie as they are",
            hint=f"fmcli ensemble evaluate {printable(path)}",
        )
    metadata, tensors = load_tensors(path)
    check_format(
        path,
        metadata,
        PACK_FORMAT,
        kind="a pack",
        hint="fmcli ensemble pack creates one from a run",
        remedies=[Remedy("pack", "RUN")],
    )
    try:
        contents = _Contents.model_validate_json(metadata.get("pack", ""))
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from error
    if len(contents.headers) != len(contents.ensemble.members):
        raise _damaged(path, "members are missing")
    return contents, tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{printable(path)}: its text is damaged: {why}",
        hint="copy it again, or pack its run again: fmcli ensemble pack",
    )


def read_pack(path: Path, *, device: torch.device) -> Pack:
    """Read a pack and build its networks.

    Raises:
        CheckpointError: It is not there, cut short, altered, or not a pack.
    """
    contents, tensors = _read(path)
    return Pack(
        names=tuple(entry.name for entry in contents.ensemble.members),
        members=tuple(
            build_checkpoint(
                path, parse_header(path, header), without_prefix(f"model.{number}", tensors), device=device
            )
            for number, header in enumerate(contents.headers)
        ),
        rule=contents.ensemble.combiner(),
        fitted_on=contents.ensemble.fitted_on,
    )


def unpack(path: Path, folder: Path) -> list[Path]:
    """Write the members of a pack into folders again, each file as it was, and an ensemble file for their rule.

    Args:
        path: The pack.
        folder: A folder that is not there yet, or is empty. It is made whole or not at all.

    Returns:
        The members' folders.

    Raises:
        UsageError: There is something in the folder.
        CheckpointError: The pack is broken, or would write outside the folder.
        FmcliError: The folder cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{printable(folder)} holds something already", hint="choose another folder with --output")
    contents, tensors = _read(path)
    inner = _safe_folders([entry.path for entry in contents.ensemble.members], path)
    carried = [_carried_files(tensors, number, path) for number in range(len(inner))]
    with new_folder(folder) as part:
        for number, (place, header) in enumerate(zip(inner, contents.headers, strict=True)):
            for file, content in carried[number].items():
                write_atomic(part / place / file, content)
            save_tensors(part / place / MODEL_FILE, without_prefix(f"model.{number}", tensors), header)
        if contents.recipe:
            write_atomic(part / RECIPE_FILE, contents.recipe.encode())
        write_ensemble_file(part / ENSEMBLE_FILE, contents.ensemble, shown=folder / ENSEMBLE_FILE)
    return [folder / place for place in inner]


def _carried_files(tensors: Mapping[str, Tensor], number: int, path: Path) -> dict[str, bytes]:
    files = without_prefix(f"file.{number}", tensors)
    for name, content in files.items():
        if name not in _CARRIED or content.dtype != torch.uint8:
            raise CheckpointError(f"{printable(path)} holds a file that no pack has: {printable(name)}")
    return {name: content.numpy().tobytes() for name, content in files.items()}


def _safe_folders(paths: Sequence[str], pack: Path) -> list[PurePosixPath]:
    """Return members' folders, each one or two plain names.

    Raises:
        CheckpointError: One is something else, or two are the same on some file systems.
    """
    inner = [PurePosixPath(path) for path in paths]
    for place in inner:
        plain = 1 <= len(place.parts) <= 2 and all(map(_is_plain, place.parts))
        if not plain or not all(map(is_snapshot_name, place.parts[1:])):
            raise CheckpointError(f"{printable(pack)}: a member's folder {printable(place)!r} is no plain name")
    if len({str(place).casefold() for place in inner}) < len(inner):
        raise CheckpointError(f"{printable(pack)}: two members have one folder")
    return inner


def _is_plain(name: str) -> bool:
    return name not in (ENSEMBLE_FILE, RECIPE_FILE) and re.fullmatch(r"\w[\w.-]*", name) is not None
