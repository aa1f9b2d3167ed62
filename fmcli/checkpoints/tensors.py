"""Read and write safetensors files with a digest over their tensors and metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fmcli.errors import CheckpointError, FmcliError, printable
from fmcli.storage.atomic import order_metadata, write_atomic
from fmcli.storage.reading import MAX_HEADER_BYTES, MAX_TENSORS, FileFormat, check_format, open_safetensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to a file atomically.

    Args:
        path: The file to write.
        tensors: Tensors by name, on any device.
        metadata: Text by name.

    Raises:
        FmcliError: The file cannot be written, or there are more tensors or metadata than `load_tensors` accepts. An
            existing file is left unchanged.
    """
    on_host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    digest = _digest(on_host, metadata)
    content = order_metadata(save(on_host, metadata={**metadata, "digest": digest}))
    header_bytes = int.from_bytes(content[:8], "little")
    if len(tensors) > MAX_TENSORS or header_bytes > MAX_HEADER_BYTES:
        raise FmcliError(
            f"{printable(path)} would have {len(tensors)} tensors and {header_bytes} bytes of metadata; "
            f"the limits are {MAX_TENSORS} and {MAX_HEADER_BYTES}",
            hint="use fewer members",
        )
    write_atomic(path, content)


def load_tensors(path: Path, expected: FileFormat | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a file that `save_tensors` wrote.

    Args:
        path: The file.
        expected: The format that the file must have. By default, every format is accepted.

    Returns:
        The metadata, and the tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, truncated or altered, or has a different format.
    """
    with open_safetensors(path, "pt", expected) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        metadata = dict(file.metadata() or {})
    if expected is not None:
        check_format(path, metadata, expected)
    digest = metadata.pop("digest", "")
    if digest != _digest(tensors, metadata):
        raise CheckpointError(
            f"{printable(path)} is damaged: its content does not match its digest",
            hint="copy the file again, or delete it and train that member again",
        )
    return metadata, tensors


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on any device. It does not depend on the file that they were read from."""
    return _digest({name: tensor.detach().to("cpu") for name, tensor in tensors.items()}, {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a prefix to the names of tensors, so that one file can contain several sets of tensors."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names have a prefix, and remove it: the inverse of `with_prefix`."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
