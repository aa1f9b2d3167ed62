"""Checkpoints: safetensors with a header that says all that is needed to use them. No pickle, in or out."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

import fmcli
from fmcli.data import Normalization
from fmcli.data.normalization import scale_pixels
from fmcli.data.pictures import Background
from fmcli.errors import CheckpointError, RecipeError, printable
from fmcli.models import build_model
from fmcli.recipe.layers import expand_layers
from fmcli.recipe.load import load_recipe
from fmcli.recipe.specs import (
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    ReferenceSpec,
)
from fmcli.tensors import load_tensors, read_metadata, save_tensors

FORMAT = "fmcli-checkpoint-2"
MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"


class Header(BaseModel):
    """What a checkpoint says of itself. It stands as JSON in the file's metadata.

    Args:
        member: The whole of the member's recipe, network included.
        data: The recipe's `[data]` table.
        ensemble: The recipe's voting rule.
        reference: Its published figures, if any.
        input_shape: (C, H, W).
        class_names: In label order.
        mean: Of each channel, in pixel units.
        std: Of each channel, in pixel units.
        background: Of the training images.
        parameters: How many numbers the network learnt.
        epochs: How many these weights were trained for; with `keep = "best"`, up to the best epoch.
        data_digests: SHA-256 of each split it saw, by name.
        recipe_digest: SHA-256 of `member` and `data`.
        versions: Of fmcli, torch and Python.
        trained_on: Device, precision and number of threads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: MemberSpec
    data: DataSpec
    ensemble: EnsembleSpec
    reference: ReferenceSpec | None = None
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    background: Background
    parameters: int
    epochs: int
    data_digests: dict[str, str]
    recipe_digest: str
    versions: dict[str, str]
    trained_on: dict[str, str]

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError("mean and std must have a number for each channel")
        return self

    @property
    def normalization(self) -> Normalization:
        """From pixels to this network's input."""
        return Normalization(self.mean, self.std)

    def normalization_of(self, split: str) -> Normalization:
        """From a split's pixels to this network's input, in the way that the recipe evaluates that split."""
        scale = self.data.normalize_test
        return scale_pixels(scale, self.input_shape[0]) if scale is not None and split == "test" else self.normalization


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained member as read from its file.

    Args:
        path: The file.
        header: What it says of itself.
        model: The network, in evaluation mode.
    """

    path: Path
    header: Header
    model: nn.Module


def versions() -> dict[str, str]:
    """Return what a checkpoint was made with."""
    return {"fmcli": fmcli.__version__, "torch": torch.__version__, "python": platform.python_version()}


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> None:
    """Write a network and its header, whole or not at all.

    Raises:
        FmcliError: The file cannot be written.
    """
    save_tensors(path, model.state_dict(), {"format": FORMAT, "header": header.model_dump_json()})


def load_checkpoint(path: Path, *, device: torch.device) -> Checkpoint:
    """Read a checkpoint and build its network.

    Args:
        path: A `model.safetensors`, or the folder that holds one.
        device: Where the network is wanted.

    Raises:
        CheckpointError: It is not there, cut short, altered, or not one of fmcli's.
    """
    header, tensors = _read(path)
    layers = expand_layers(header.member.model, len(header.class_names), header.input_shape)
    try:
        model = build_model(layers, header.input_shape, len(header.class_names))
    except RecipeError as error:
        problems = "; ".join(error.problems)
        raise CheckpointError(f"{printable(path)}: its header is damaged: {printable(problems)}") from error
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        wanted, found = expected.get(name), tensors.get(name)
        if wanted is None or found is None or wanted.shape != found.shape or wanted.dtype != found.dtype:
            raise CheckpointError(
                f"{printable(path)}: tensor {printable(name)} is {_show(found)}; its network needs {_show(wanted)}"
            )
    model.load_state_dict(tensors)
    model.to(device).eval()
    return Checkpoint(path, header, model)


def read_header(path: Path) -> Header:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: It is not there, or not one of fmcli's.
    """
    path = _file_of(path)
    return _parse_header(path, read_metadata(path))


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    path = _file_of(path)
    metadata, tensors = load_tensors(path)
    return _parse_header(path, metadata), tensors


def _file_of(place: Path) -> Path:
    return place / MODEL_FILE if place.is_dir() else place


def _parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    found = metadata.get("format", "")
    if found != FORMAT:
        of_another = found.startswith(FORMAT.rstrip("0123456789"))
        raise CheckpointError(
            f"{printable(path)} is not a checkpoint of this fmcli (format {printable(found)!r}, expected {FORMAT!r})",
            hint="another version of fmcli wrote it: train again, or use that version"
            if of_another
            else "give a run folder, a member's folder or its model.safetensors",
        )
    try:
        return Header.model_validate_json(metadata["header"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{printable(path)}: its header is damaged: {str(error).splitlines()[0]}") from error


def _show(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


# --- runs -------------------------------------------------------------------------------------------------


def find_checkpoints(places: Sequence[Path]) -> list[Path]:
    """Return the checkpoint files that run folders, member folders and files stand for, in order.

    Args:
        places: Each a run folder, a member's folder or a file.

    Raises:
        CheckpointError: One holds no checkpoint, or two stand for the same.
    """
    found: list[Path] = []
    for place in places:
        if (place / MODEL_FILE).is_file() or place.is_file():
            found.append(_file_of(place))
            continue
        if not place.is_dir():
            raise CheckpointError(
                f"there is nothing at {printable(place)}", hint="fmcli train --recipe quick makes a run"
            )
        members = _members_of(place)
        if not members:
            raise CheckpointError(
                f"{printable(place)} holds no trained member",
                hint=f"fmcli train --recipe {printable(place / RECIPE_FILE)} --output {printable(place)} --resume"
                if (place / RECIPE_FILE).is_file()
                else "give a run folder, a member's folder or its model.safetensors",
            )
        found += members
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise CheckpointError(f"{printable(path)} is named twice", hint="each member has one vote: name it once")
        seen.add(path.resolve())
    return found


def _members_of(run: Path) -> list[Path]:
    """Return the checkpoints of a run's members, in the order of its recipe where it has one."""
    paths = {path.parent.name: path for path in sorted(run.glob(f"*/{MODEL_FILE}"))}
    return [paths[name] for name in members_of_run(run) or paths if name in paths]


def members_of_run(run: Path) -> list[str]:
    """Return a run's members by its recipe; none where that is missing or damaged, for checkpoints do without."""
    try:
        return [member.name for member in load_recipe(str(run / RECIPE_FILE)).members]
    except RecipeError:
        return []


def unfinished_members(places: Sequence[Path]) -> dict[Path, list[str]]:
    """Return, for each run folder that lacks some, the members of its recipe that have no checkpoint yet."""
    runs = [place for place in places if (place / RECIPE_FILE).is_file()]
    missing = {run: [name for name in members_of_run(run) if not (run / name / MODEL_FILE).is_file()] for run in runs}
    return {run: names for run, names in missing.items() if names}


def tell_apart(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return members' names, with their run's name or their whole path where several have the same.

    Args:
        names: Of members.
        files: One in each member's folder.
    """
    paths = [file.absolute() for file in files]
    with_run = [f"{path.parent.parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    return [
        name if names.count(name) == 1 else longer if with_run.count(longer) == 1 else str(path)
        for name, longer, path in zip(names, with_run, paths, strict=True)
    ]
