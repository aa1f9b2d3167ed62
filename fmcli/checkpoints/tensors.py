"""Files of tensors and text: safetensors with a digest over both, written whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fmcli.errors import CheckpointError, FmcliError, printable
from fmcli.storage.atomic import order_metadata, write_atomic
from fmcli.storage.reading import MAX_HEADER_BYTES, MAX_TENSORS, open_safetensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, from any device, and text.

    Raises:
        FmcliError: The file cannot be written, or would be too large to be read again; one that stood there before is
            intact.
    """
    on_host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    digest = _digest(on_host, metadata)
    content = order_metadata(save(on_host, metadata={**metadata, "digest": digest}))
    if len(tensors) > MAX_TENSORS or int.from_bytes(content[:8], "little") > MAX_HEADER_BYTES:
        raise FmcliError(
            f"{printable(path)} would not be read again: more than {MAX_TENSORS} tensors, or than {MAX_HEADER_BYTES} "
            "bytes of text",
            hint="take fewer members",
        )
    write_atomic(path, content)


def load_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read what `save_tensors` wrote.

    Returns:
        The text, and the tensors on the CPU.

    Raises:
        CheckpointError: It is not there, cut short or altered.
    """
    with open_safetensors(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        metadata = dict(file.metadata() or {})
    digest = metadata.pop("digest", "")
    if digest != _digest(tensors, metadata):
        raise CheckpointError(
            f"{printable(path)} is damaged: its content does not match its digest",
            hint="copy it again; or train it again, after removing it",
        )
    return metadata, tensors


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors alone, from any device, whatever file they are in."""
    return _digest({name: tensor.detach().to("cpu") for name, tensor in tensors.items()}, {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under longer names, so that several sets fit into one file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the set that `with_prefix` put under a prefix, by its own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


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
    for name, tensor in without_prefix(prefix, tensors).items():
        outer, _, inner = name.partition(".")
        state.setdefault(int(outer), {})[inner] = tensor
    return state
