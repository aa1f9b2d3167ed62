"""Checkpoints: safetensors with a header that says all that is needed to use them. No pickle, in or out."""

import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

import fmcli
from fmcli.checkpoints.layout import MODEL_FILE, snapshot_name
from fmcli.checkpoints.tensors import load_tensors, save_tensors, weights_digest
from fmcli.choices import SoupMethod
from fmcli.data import Normalization
from fmcli.data.background import Background
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.data.normalization import scale_pixels
from fmcli.errors import CheckpointError, RecipeError, printable
from fmcli.networks import build_model
from fmcli.recipe.families import expand_layers
from fmcli.recipe.specs import (
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    ReferenceSpec,
)
from fmcli.recipe.tracing import count_parameters, trace_layers
from fmcli.storage.reading import check_format, read_metadata

FORMAT = "fmcli-checkpoint-2"
_HARMLESS = 10_000_000  # parameters, which may be missing


class Ingredient(BaseModel):
    """A checkpoint whose weights went into a soup.

    Args:
        name: What the member was called.
        digest: SHA-256 of its weights alone, wherever they lay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str


class SoupOrigin(BaseModel):
    """What the weights of a soup are the mean of.

    Args:
        method: How its ingredients were chosen.
        ingredients: In the order that they went in; one alone where `greedy` found no average that is as good.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: SoupMethod
    ingredients: Annotated[tuple[Ingredient, ...], Field(min_length=1)]


class Header(BaseModel):
    """What a checkpoint says of itself. It stands as JSON in the file's metadata.

    Args:
        member: The whole of the member's recipe, network included; of a soup, that of its first ingredient, but for
            `name` and `trainer.keep`.
        data: The recipe's `[data]` table.
        ensemble: The recipe's voting rule.
        reference: Its published figures, if any.
        input_shape: (C, H, W).
        class_names: In label order.
        mean: Of each channel, in pixel units.
        std: Of each channel, in pixel units.
        background: Of the training images.
        parameters: How many numbers the network learnt.
        epochs: How many whole ones these weights were trained for; with `keep = "best"`, up to the best epoch; of a
            soup, the most that one of its ingredients was.
        snapshot: Which of the member's snapshots they are, from 1; None for those that it ended with.
        data_digests: SHA-256 of each split it saw, by name.
        recipe_digest: SHA-256 of `member` and `data`.
        versions: Of fmcli, torch and Python.
        trained_on: Device, precision and number of threads; of a soup, of its first ingredient.
        soup: What was averaged, where these weights are a mean.
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
    snapshot: PositiveInt | None = None
    data_digests: dict[str, str]
    recipe_digest: str
    versions: dict[str, str]
    trained_on: dict[str, str]
    soup: SoupOrigin | None = None

    @model_validator(mode="after")
    def _fits_images(self) -> Self:
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise ValueError("mean and std must have a number for each channel")
        if math.prod(self.input_shape) > MAX_IMAGE_VALUES:
            raise ValueError(f"images have {MAX_IMAGE_VALUES} numbers at most")
        return self

    @property
    def name(self) -> str:
        """What people call these weights: `k3`, or `k3/snapshot-1`."""
        return self.member.name if self.snapshot is None else f"{self.member.name}/{snapshot_name(self.snapshot)}"

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
    model: nn.Sequential

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights alone, whatever file they are from."""
        return weights_digest(self.model.state_dict())


def versions() -> dict[str, str]:
    """Return what a checkpoint was made with."""
    found = {"fmcli": fmcli.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with suppress(metadata.PackageNotFoundError):
        found["numba"] = metadata.version("numba")
    return found


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
    path = _file_of(path)
    metadata, tensors = load_tensors(path)
    return build_checkpoint(path, parse_header(path, metadata), tensors, device=device)


def build_checkpoint(path: Path, header: Header, tensors: Mapping[str, Tensor], *, device: torch.device) -> Checkpoint:
    """Build the network of a header and weights.

    Args:
        path: The file that they are from.
        header: What it says of itself.
        tensors: Its weights.
        device: Where the network is wanted.

    Raises:
        CheckpointError: They do not fit each other.
    """
    layers = expand_layers(header.member.model, len(header.class_names), header.input_shape)
    try:
        promised = count_parameters(trace_layers(layers, header.input_shape, len(header.class_names)))
        if promised > max(_HARMLESS, sum(tensor.numel() for tensor in tensors.values())):
            raise CheckpointError(f"{printable(path)}: its header promises {promised} parameters, and fewer are there")
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
    return parse_header(path, read_metadata(path))


def _file_of(place: Path) -> Path:
    return place / MODEL_FILE if place.is_dir() else place


def parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """Return what a checkpoint's text says.

    Raises:
        CheckpointError: It is not a checkpoint of this fmcli, or damaged.
    """
    check_format(
        path,
        metadata,
        FORMAT,
        kind="a checkpoint",
        hint="give a run folder, a member's folder or its model.safetensors",
    )
    try:
        return Header.model_validate_json(metadata["header"])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(f"{printable(path)}: its header is damaged: {str(error).splitlines()[0]}") from error


def _show(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
