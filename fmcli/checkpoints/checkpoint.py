"""Read and write checkpoints: safetensors files with weights and a header that describes them completely.

Checkpoints contain no pickled objects.
"""

import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn

import fmcli
from fmcli.checkpoints.layout import MODEL_FILE, snapshot_name
from fmcli.checkpoints.tensors import load_tensors, save_tensors, weights_digest
from fmcli.choices import SoupMethod
from fmcli.data import Normalization
from fmcli.data.background import Background
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.data.normalization import scale_pixels
from fmcli.ensemble.file import first_problem
from fmcli.errors import CheckpointError, RecipeError, printable
from fmcli.networks.build import build_model
from fmcli.networks.tracing import trace_network
from fmcli.recipe.data import DataSpec
from fmcli.recipe.recipe import EnsembleSpec, MemberSpec, ReferenceSpec
from fmcli.recipe.tracing import count_parameters
from fmcli.storage.reading import FileFormat, check_format, read_metadata

FORMAT = FileFormat(
    "fmcli-checkpoint-2", "a checkpoint", hint="give a run folder, a member's folder or its model.safetensors"
)
_MAX_UNCHECKED_PARAMETERS = 10_000_000  # a network of this size is built even if the file has fewer weights


class Ingredient(BaseModel, frozen=True, extra="forbid"):
    """A checkpoint whose weights went into a soup.

    Args:
        name: The member's name.
        digest: SHA-256 of the weights; see `weights_digest`.
    """

    name: str
    digest: str


class SoupOrigin(BaseModel, frozen=True, extra="forbid"):
    """How the weights of a soup were made.

    Args:
        method: The method that chose the checkpoints.
        ingredients: The averaged checkpoints, in the order in which they were added. There is only one if `greedy`
            found no average that is at least as good as the best checkpoint.
    """

    method: SoupMethod
    ingredients: Annotated[tuple[Ingredient, ...], Field(min_length=1)]


class Header(BaseModel, frozen=True, extra="forbid"):
    """Description of a checkpoint, stored as JSON in the file's metadata.

    Args:
        member: The member's complete recipe, including its network. For a soup, the recipe of its first ingredient with
            a different `name` and `trainer.keep`.
        index: Index of the member in its recipe, from 0. The member's random numbers depend on it. None for a soup.
        data: The recipe's `[data]` table.
        ensemble: The recipe's voting rule.
        reference: The recipe's published results, if any.
        input_shape: (C, H, W).
        class_names: Class names in label order.
        mean: Mean of each channel, in pixel units.
        std: Standard deviation of each channel, in pixel units.
        background: Background of the training images.
        parameters: Number of trained parameters.
        epochs: Number of epochs that the weights were trained for. With `keep = "best"`, later epochs do not count. For
            a soup, the maximum over its ingredients.
        snapshot: Number of the member's snapshot, from 1; None for the final weights.
        data_digests: SHA-256 of each split, by name.
        recipe_digest: SHA-256 of `member` and `data`.
        versions: Versions of fmcli, torch, Python and, if installed, numba.
        trained_on: Device, precision, number of threads and, if the initial weights are from a file, its SHA-256. A
            soup has the values of its first ingredient.
        soup: Origin of averaged weights; None for trained weights.
    """

    member: MemberSpec
    index: NonNegativeInt | None = None
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
            raise ValueError("mean and std must have one number per channel")
        if math.prod(self.input_shape) > MAX_IMAGE_VALUES:
            raise ValueError(f"an image can have at most {MAX_IMAGE_VALUES} values")
        return self

    @property
    def name(self) -> str:
        """Name of these weights: `k3`, or `k3/snapshot-1`."""
        return self.member.name if self.snapshot is None else f"{self.member.name}/{snapshot_name(self.snapshot)}"

    @property
    def normalization(self) -> Normalization:
        """Conversion of pixels to network input."""
        return Normalization(self.mean, self.std)

    def normalization_of(self, split: str) -> Normalization:
        """Return the conversion of a split's pixels to network input. The recipe may set a different one for `test`."""
        scale = self.data.normalize_test
        return scale_pixels(scale, self.input_shape[0]) if scale is not None and split == "test" else self.normalization


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained member.

    Args:
        path: The checkpoint file.
        header: The description in the file.
        model: The network, in evaluation mode.
    """

    path: Path
    header: Header
    model: nn.Sequential

    @property
    def name(self) -> str:
        """Name of the member, or of its snapshot."""
        return self.header.name

    @property
    def group(self) -> str:
        """Group in a two-level vote: the kernel sizes of the network."""
        return self.header.member.model.kernel_group

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights. It does not depend on the file."""
        return weights_digest(self.model.state_dict())


def versions() -> dict[str, str]:
    """Return the versions of fmcli, torch, Python and, if installed, numba."""
    found = {"fmcli": fmcli.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with suppress(metadata.PackageNotFoundError):
        found["numba"] = metadata.version("numba")
    return found


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> None:
    """Write a network and its header atomically.

    Raises:
        FmcliError: The file cannot be written.
    """
    save_tensors(path, model.state_dict(), {"format": FORMAT.name, "header": header.model_dump_json()})


def load_checkpoint(path: Path, *, device: torch.device) -> Checkpoint:
    """Read a checkpoint and build its network.

    Args:
        path: A `model.safetensors`, or its folder.
        device: Device for the network.

    Raises:
        CheckpointError: The file is missing, truncated, altered, or not a checkpoint written by fmcli.
    """
    path = _checkpoint_file(path)
    metadata, tensors = load_tensors(path, FORMAT)
    return build_checkpoint(path, parse_header(path, metadata), tensors, device=device)


def build_checkpoint(path: Path, header: Header, tensors: Mapping[str, Tensor], *, device: torch.device) -> Checkpoint:
    """Build the network that a header describes, and load its weights.

    Args:
        path: The file that contains header and weights.
        header: The description in the file.
        tensors: The weights by name.
        device: Device for the network.

    Raises:
        CheckpointError: The weights do not fit the network.
    """
    try:
        traces = trace_network(header.member.model, header.input_shape, len(header.class_names))
    except RecipeError as error:
        raise _damaged_header(path, "; ".join(error.problems)) from error
    expected_count = count_parameters(traces)
    found_count = sum(tensor.numel() for tensor in tensors.values())
    if expected_count > max(_MAX_UNCHECKED_PARAMETERS, found_count):
        raise CheckpointError(
            f"{printable(path)} has {found_count} parameters, but its header describes {expected_count}"
        )
    model = build_model(traces)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        needed, found = expected.get(name), tensors.get(name)
        if needed is None or found is None or needed.shape != found.shape or needed.dtype != found.dtype:
            raise CheckpointError(
                f"{printable(path)}: tensor {printable(name)} is {_describe(found)}, but its network "
                + ("has no tensor of this name" if needed is None else f"needs {_describe(needed)}")
            )
    model.load_state_dict(tensors)
    model.to(device).eval()
    return Checkpoint(path, header, model)


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint. Do not read the weights or check the digest.

    Raises:
        CheckpointError: The file is missing, or not a checkpoint written by fmcli.
    """
    path = _checkpoint_file(path)
    return parse_header(path, read_metadata(path, FORMAT))


def _checkpoint_file(path: Path) -> Path:
    return path / MODEL_FILE if path.is_dir() else path


def parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """Parse the metadata of a checkpoint.

    Raises:
        CheckpointError: The format differs, or the header is damaged.
    """
    check_format(path, metadata, FORMAT)
    try:
        return Header.model_validate_json(metadata.get("header", ""))
    except ValidationError as error:
        raise _damaged_header(path, first_problem(error)) from error


def _damaged_header(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"the header of {printable(path)} is damaged: {printable(problem)}")


def _describe(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
