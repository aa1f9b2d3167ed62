"""Checkpoints: safetensors with a header that says all that is needed to use them. No pickle, in or out."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import fmcli
from fmcli.data import Normalization
from fmcli.data.pictures import Background
from fmcli.errors import CheckpointError, RecipeError, printable
from fmcli.files import write_atomic
from fmcli.models import build_model
from fmcli.recipe.layers import expand_layers
from fmcli.recipe.load import load_recipe
from fmcli.recipe.specs import DataSpec, EnsembleSpec, MemberSpec, ReferenceSpec

FORMAT = "fmcli-checkpoint-1"
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
        epochs: How many it was trained for.
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
    layers = expand_layers(header.member.model, len(header.class_names))
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
    metadata = _open(path)[0]
    return _parse_header(path, metadata)


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    path = path / MODEL_FILE if path.is_dir() else path
    metadata, tensors = load_tensors(path)
    return _parse_header(path, metadata), tensors


def _parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{printable(path)} is not a checkpoint of this fmcli "
            f"(format {printable(metadata.get('format'))!r}, expected {FORMAT!r})",
            hint="give a run folder, a member's folder or its model.safetensors",
        )
    try:
        return Header.model_validate_json(metadata["header"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{printable(path)}: its header is damaged: {str(error).splitlines()[0]}") from error


def _show(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


# --- tensors with a digest -------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text with a digest over both, whole or not at all."""
    on_host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    digest = _digest(on_host, metadata)
    write_atomic(path, save(on_host, metadata={**metadata, "digest": digest}))


def load_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read what `save_tensors` wrote: the text and the tensors, on the CPU.

    Raises:
        CheckpointError: It is not there, cut short or altered.
    """
    metadata, tensors = _open(path, with_tensors=True)
    digest = metadata.pop("digest", "")
    if digest != _digest(tensors, metadata):
        raise CheckpointError(
            f"{printable(path)} is damaged: its content does not match its digest",
            hint="train it again, or copy it again",
        )
    return metadata, tensors


def _open(path: Path, *, with_tensors: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    path = path / MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {printable(path)}", hint="fmcli train --recipe quick makes one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path)} is not a whole safetensors file: {printable(error)}",
            hint="it was cut short or is of another format; train it again, or copy it again",
        ) from error


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- runs -------------------------------------------------------------------------------------------------


def find_checkpoints(places: Sequence[Path]) -> list[Path]:
    """Return the checkpoint files that run folders, member folders and files stand for, in order.

    Args:
        places: Each a run folder, a member's folder or a file.

    Raises:
        CheckpointError: One holds no checkpoint.
    """
    found: list[Path] = []
    for place in places:
        if (place / MODEL_FILE).is_file() or place.is_file():
            found.append(place / MODEL_FILE if place.is_dir() else place)
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
    return found


def _members_of(run: Path) -> list[Path]:
    """Return the checkpoints of a run's members, in the order of its recipe where it has one."""
    paths = {path.parent.name: path for path in sorted(run.glob(f"*/{MODEL_FILE}"))}
    if not (run / RECIPE_FILE).is_file():
        return list(paths.values())
    return [paths[name] for name in _names_in(run) if name in paths]


def _names_in(run: Path) -> list[str]:
    return [member.name for member in load_recipe(str(run / RECIPE_FILE)).members]


def unfinished_members(places: Sequence[Path]) -> dict[Path, list[str]]:
    """Return, for each run folder that lacks some, the members of its recipe that have no checkpoint yet."""
    runs = [place for place in places if (place / RECIPE_FILE).is_file()]
    missing = {run: [name for name in _names_in(run) if not (run / name / MODEL_FILE).is_file()] for run in runs}
    return {run: names for run, names in missing.items() if names}


def flatten_state(state: Mapping[Any, Any], prefix: str) -> dict[str, Tensor]:
    """Return an optimizer's nested state as tensors by dotted name; what is None is left out."""
    return {
        f"{prefix}.{outer}.{inner}": tensor
        for outer, table in state.items()
        for inner, tensor in table.items()
        if tensor is not None
    }


def unflatten_state(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    """Return what `flatten_state` flattened."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first == prefix:
            outer, _, inner = rest.partition(".")
            state.setdefault(int(outer), {})[inner] = tensor
    return state
