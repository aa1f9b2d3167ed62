"""Kernels of our own for PyTorch's tensors on a CPU, where they can be had."""

import sys
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class Operator(Protocol):
    """What needs kernels, such as an `autograd.Function`."""

    @staticmethod
    def try_out(kernels: ModuleType, dtype: torch.dtype) -> None:
        """Use each kernel once, so that all are compiled."""


def load_kernels(operator: type[Operator], dtype: torch.dtype) -> ModuleType | None:
    """Return the module `kernels`, compiled for an operator and a dtype, or None where they cannot be had."""
    kernels = _compile_kernels(operator, dtype) if sys.platform == "linux" else None
    return None if kernels is None or kernels.is_forked() else kernels


@cache
def _compile_kernels(operator: type[Operator], dtype: torch.dtype) -> ModuleType | None:
    n_threads = torch.get_num_threads()
    try:
        from fmcli.networks.cpu import kernels

        if kernels.is_forked() or not kernels.shares_threads():
            return None
        operator.try_out(kernels, dtype)
    except Exception:  # no OpenMP, a full disk, a damaged cache, no right to make machine code: PyTorch computes
        return None
    finally:
        torch.set_num_threads(n_threads)  # starting numba's threads sets the number of OpenMP's
    return kernels


def as_array(images: Tensor) -> NDArray[Any]:
    """Return the memory of (N, C, H, W), channels last, as (N, H, W, C); bfloat16 as int16."""
    images = images.detach().permute(0, 2, 3, 1)
    array: NDArray[Any] = (images.view(torch.int16) if images.dtype == torch.bfloat16 else images).numpy()
    return array
