"""Where the work is done, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from fmcli.errors import DeviceError, did_you_mean

if TYPE_CHECKING:
    import torch  # which takes seconds: below, where it is needed

_KINDS = ("auto", "cpu", "cuda", "mps")
_idle_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


def check_device_name(name: str) -> str:
    """Return what `--device` was given.

    Raises:
        DeviceError: No device is called so.
    """
    kind, _, index = name.partition(":")
    if kind not in _KINDS or (index and not (kind == "cuda" and index.isdecimal())):
        raise DeviceError(f"unknown device {name!r}; {did_you_mean(kind, _KINDS)}", hint="for instance --device cuda:0")
    return name


def resolve_device(name: str) -> torch.device:
    """Return the device that `--device` means.

    Args:
        name: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        DeviceError: It is not there.
    """
    import torch

    kind, _, index = check_device_name(name).partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            found = f"there are {count}" if count else "torch finds no NVIDIA GPU here"
            raise DeviceError(
                f"no device {name}: {found}", hint="--device auto takes what is there; --device cpu always is"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no device mps: torch finds no Apple GPU here", hint="--device auto takes what is there")
    return torch.device(kind, int(index)) if index else torch.device(kind)


def use_bf16(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> bool:
    """Tell whether to multiply in bfloat16: as asked, or where the device has units for it.

    Those are NVIDIA GPUs from sm80, and CPUs with AMX or AVX-512 BF16.
    """
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Where there are no such units oneDNN emulates, which is slower than fp32. torch has no public word for it.
        checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(check() for check in checks if check is not None)
    return False


def name_of(device: torch.device) -> str:
    """Return a device's name for people and for headers."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Let what this thread computes on an NVIDIA GPU go into a stream of its own, behind all that is queued there now.

    What is queued in one stream may be computed beside what is queued in others. PyTorch has but 32, and each keeps
    memory of its own: who comes later takes those that others have left.
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
    """Tell a lack of memory from a bug: only CUDA has an exception of its own for it."""
    import torch

    kinds = (torch.OutOfMemoryError, MemoryError)
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # of the CPU's allocator, Apple's, NVIDIA's
    return isinstance(error, kinds) or any(word in str(error) for word in words)
