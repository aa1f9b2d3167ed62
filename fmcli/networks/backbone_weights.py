"""Start a network of torchvision from the weights in a safetensors file, such as pretrained ones."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from fmcli.errors import RecipeError, join_names, printable
from fmcli.networks.torchvision_networks import build_on_meta, find_classifier, find_stem
from fmcli.recipe.layers import Backbone
from fmcli.recipe.tracing import Shape, show_shape
from fmcli.storage.reading import open_tensors

_MAX_LISTED = 3  # names per kind of problem


def check_weights(layer: Backbone, input_shape: Shape) -> None:
    """Check that the file of initial weights fits the network. Only the shapes in the file are read.

    Raises:
        RecipeError: The file cannot be read, or has missing, unexpected or mis-shaped parameters.
    """
    if layer.weights is not None:
        network = build_on_meta(layer.name, input_shape, layer.n_classes)
        with _open_weights(layer.weights) as file:
            _names_to_initialize(network, file, layer.weights)


def load_weights(network: nn.Module, path: str) -> tuple[str, ...]:
    """Load parameters and buffers from a file, but not the classifier, nor a stem whose shape differs.

    Args:
        network: A network with initial weights.
        path: A safetensors file with torchvision's names of parameters and buffers.

    Returns:
        Names of the parameters that were not loaded.

    Raises:
        RecipeError: See `check_weights`.
    """
    state = network.state_dict()
    with _open_weights(path) as file, torch.no_grad():
        initialized = _names_to_initialize(network, file, path)
        for name in state.keys() & set(file.keys()) - set(initialized):
            state[name].copy_(file.get_tensor(name))
    return initialized


def weights_file_digest(path: str) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        RecipeError: The file cannot be read.
    """
    with _open_weights(path):
        file = Path(path).expanduser()
        state = file.stat()
        return _file_digest(file, state.st_size, state.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _open_weights(path: str) -> Iterator[Any]:
    try:
        with open_tensors(Path(path).expanduser(), "pt") as file:
            yield file
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _impossible(f"cannot read {printable(path)} as a safetensors file: {printable(reason)}") from error


def _names_to_initialize(network: nn.Module, file: Any, path: str) -> tuple[str, ...]:
    """Return the names of the classifier's parameters and, if its shape differs, the stem's, in the network's order."""
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a mapping
    stem, classifier = (f"{name}." for name, _ in (find_stem(network), find_classifier(network)))
    stem_fits = all(found.get(name) == shape for name, shape in needed.items() if name.startswith(stem))
    new = (classifier,) if stem_fits else (classifier, stem)
    # The published files of the older networks do not have the counters of batch norm, which no computation uses.
    optional = {name for name in needed if name.endswith(".num_batches_tracked") and name not in found}
    kept = {name: shape for name, shape in needed.items() if not name.startswith(new) and name not in optional}
    problems = _list_differences(kept, {name: shape for name, shape in found.items() if not name.startswith(new)})
    if problems:
        raise _impossible(f"{printable(path)} does not fit the network: {'; '.join(problems)}")
    return tuple(name for name in needed if name.startswith(new))


def _list_differences(needed: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    shapes = [
        f"{name} {show_shape(found[name])} instead of {show_shape(shape)}"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    kinds: dict[str, Sequence[str]] = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in needed],
        "of another shape": shapes,
    }
    return [f"{len(names)} {kind} ({join_names(names, _MAX_LISTED)})" for kind, names in kinds.items() if names]


def _impossible(problem: str) -> RecipeError:
    return RecipeError("impossible network", problems=[f"weights: {problem}"])
