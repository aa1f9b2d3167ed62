"""Packs: an ensemble as one file, with every member, the rule, what was learnt for it, and the run that it is from.

A pack is a safetensors file. Under `model.N.` it has the weights of member N, under `file.N.` other files of its
folder as bytes; the text says the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fmcli.checkpoint import MODEL_FILE, RECIPE_FILE, Checkpoint, build_checkpoint, parse_header
from fmcli.ensemble import Combiner
from fmcli.ensemble_file import EnsembleFile, LearntOn, Place, describe_ensemble, write_ensemble_file
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.files import write_atomic
from fmcli.history import HISTORY_FILE
from fmcli.predictions import predictions_file
from fmcli.tensors import load_tensors, save_tensors, with_prefix, without_prefix

PACK_FORMAT = "fmcli-pack-1"
ENSEMBLE_FILE = "ensemble.toml"
_CARRIED = (HISTORY_FILE, predictions_file("validation"))
"""Files of a member's folder that go with its weights."""


class _Contents(BaseModel):
    """The text of a pack.

    Args:
        ensemble: The rule and the members, whose paths are their folders' names when they are unpacked.
        headers: The text of each member's checkpoint.
        recipe: Of the run that all members are from; empty where they are from several.
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
        learnt_on: The digest of the images that it was made on; empty where there were none.
    """

    names: tuple[str, ...]
    members: tuple[Checkpoint, ...]
    rule: Combiner
    learnt_on: str


def write_pack(path: Path, places: Sequence[Place], rule: Combiner, learnt_on: LearntOn | None = None) -> None:
    """Write members and their rule as one file.

    Args:
        path: The file.
        places: The members' checkpoint files, in the rule's order, with names that differ.
        rule: With all that was learnt.
        learnt_on: The images that it was learnt on.

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
                tensors[f"file.{number}.{name}"] = torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).copy())
    folders = _folder_names([place.name for place in places])
    inside = [Place(place.name, Path(folder), place.digest) for place, folder in zip(places, folders, strict=True)]
    contents = _Contents(
        ensemble=describe_ensemble(inside, rule, None, learnt_on),
        headers=tuple(headers),
        recipe=_common_recipe(places),
    )
    save_tensors(path, tensors, {"format": PACK_FORMAT, "pack": contents.model_dump_json(exclude_none=True)})


def _folder_names(names: Sequence[str]) -> list[str]:
    """Return a plain name of its own for each member's folder."""
    plain = [name.replace("/", "-").replace("\\", "-") for name in names]
    return [f"{number}-{name}" if plain.count(name) > 1 else name for number, name in enumerate(plain)]


def _common_recipe(places: Sequence[Place]) -> str:
    """Return the recipe of the run that all members are from, or nothing."""
    runs = {place.path.resolve().parent.parent for place in places}
    recipe = runs.pop() / RECIPE_FILE
    return recipe.read_text("utf-8") if not runs and recipe.is_file() else ""


def _read(path: Path) -> tuple[_Contents, dict[str, Tensor]]:
    metadata, tensors = load_tensors(path)
    if metadata.get("format") != PACK_FORMAT:
        raise CheckpointError(f"{printable(path)} is not a pack", hint="fmcli ensemble pack makes one of a run")
    try:
        contents = _Contents.model_validate_json(metadata["pack"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{printable(path)}: its text is damaged: {printable(error)}") from error
    if len(contents.headers) != len(contents.ensemble.members):
        raise CheckpointError(f"{printable(path)}: its text is damaged: members are missing")
    return contents, tensors


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
        learnt_on=contents.ensemble.learnt_on.data_digest if contents.ensemble.learnt_on else "",
    )


def unpack(path: Path, folder: Path) -> list[Path]:
    """Write the members of a pack into folders again, each file as it was, and an ensemble file for their rule.

    Args:
        path: The pack.
        folder: A folder that is not there yet, or is empty.

    Returns:
        The members' folders.

    Raises:
        UsageError: There is something in the folder.
        CheckpointError: The pack is broken, or would write outside the folder.
        FmcliError: The folder cannot be written.
    """
    contents, tensors = _read(path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{printable(folder)} holds something already", hint="choose another folder with --output")
    names = [_safe_name(entry.path, path) for entry in contents.ensemble.members]
    carried = [_carried_files(tensors, number, path) for number in range(len(names))]
    for number, (name, header) in enumerate(zip(names, contents.headers, strict=True)):
        for file, content in carried[number].items():
            write_atomic(folder / name / file, content)
        save_tensors(folder / name / MODEL_FILE, without_prefix(f"model.{number}", tensors), header)
    if contents.recipe:
        write_atomic(folder / RECIPE_FILE, contents.recipe.encode())
    write_ensemble_file(folder / ENSEMBLE_FILE, contents.ensemble)
    return [folder / name for name in names]


def _carried_files(tensors: Mapping[str, Tensor], number: int, path: Path) -> dict[str, bytes]:
    files = without_prefix(f"file.{number}", tensors)
    for name, content in files.items():
        if name not in _CARRIED or content.dtype != torch.uint8:
            raise CheckpointError(f"{printable(path)} holds a file that no pack has: {printable(name)}")
    return {name: content.numpy().tobytes() for name, content in files.items()}


def _safe_name(name: str, path: Path) -> str:
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{printable(path)} names a member's folder {printable(name)!r}, which is no plain name")
    return name
