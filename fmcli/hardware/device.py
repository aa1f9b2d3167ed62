"""Devices: names, precision, CUDA streams and out-of-memory errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from fmcli.errors import DeviceError, Remedy, did_you_mean

if TYPE_CHECKING:
    import torch  # importing torch takes seconds, so each function imports it when it is called

_KINDS = ("auto", "cpu", "cuda", "mps")
_idle_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


def check_device_name(name: str) -> str:
    """Return a device name unchanged if it is valid; the device itself may be missing.

    Raises:
        DeviceError: The name is not valid.
    """
    kind, _, index = name.partition(":")
    if kind not in _KINDS or (index and not (kind == "cuda" and index.isdecimal())):
        raise DeviceError(
            f"unknown device {name!r}; {did_you_mean(kind, _KINDS)}", hint="give auto, cpu, cuda, cuda:N or mps"
        )
    return name


def resolve_device(name: str) -> torch.device:
    """Return the device with a name.

    Args:
        name: `auto` (a GPU if there is one, otherwise the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        DeviceError: The name is not valid, or this machine does not have the device.
    """
    import torch

    kind, _, index = check_device_name(name).partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            found = f"torch finds {count} NVIDIA GPU{'s' * (count > 1)}" if count else "torch finds no NVIDIA GPU"
            raise DeviceError(
                f"no device {name}: {found}", remedies=[Remedy("device", "auto"), Remedy("device", "cpu")]
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no device mps: torch finds no Apple GPU", remedies=[Remedy("device", "auto")])
    return torch.device(kind, int(index)) if index else torch.device(kind)


def use_bf16(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> bool:
    """Return whether to multiply in bfloat16.

    Args:
        precision: `auto` chooses bfloat16 if the device has bfloat16 hardware, such as NVIDIA GPUs from sm80 and CPUs
            with AMX or AVX-512 BF16.
        device: The device that computes.
    """
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # On other CPUs oneDNN emulates bfloat16, which is slower than fp32. The functions of torch are private.
        checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(check() for check in checks if check is not None)
    return False


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, otherwise the kind of the device, such as `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def use_own_stream(device: torch.device) -> Iterator[None]:
    """Run this thread's GPU work in a separate CUDA stream, after all work that is queued now.

    Work in different streams can run in parallel. Streams are pooled and reused: PyTorch has only 32, and its allocator
    keeps separate memory for each.
    """
    import torch

    idle = _idle_streams.setdefault(device, [])
    stream = idle.pop() if idle else torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        idle.append(stream)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out. PyTorch has an exception type for this only on CUDA."""
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # from the CPU, Apple and NVIDIA allocators
    return isinstance(error, kinds) or any(text in str(error) for text in texts)
