"""Compile and load the optional CPU kernels."""

import sys
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class Operator(Protocol):
    """A user of the kernels, such as an `autograd.Function`."""

    @staticmethod
    def warm_up(kernels: ModuleType, dtype: torch.dtype) -> None:
        """Call each kernel once, so that all are compiled."""


def load_kernels(operator: type[Operator], dtype: torch.dtype) -> ModuleType | None:
    """Return the module `kernels`, compiled for an operator and a dtype, or None if it is not available.

    The kernels need Linux, numba with OpenMP, and a process that was not forked after they were loaded.
    """
    kernels = _compile_kernels(operator, dtype) if sys.platform == "linux" else None
    return None if kernels is None or kernels.is_forked() else kernels


@cache
def _compile_kernels(operator: type[Operator], dtype: torch.dtype) -> ModuleType | None:
    n_threads = torch.get_num_threads()
    try:
        from fmcli.networks.cpu import kernels

        if kernels.is_forked() or not kernels.shares_threads():
            return None
        operator.warm_up(kernels, dtype)
    except Exception:  # no OpenMP, full disk, damaged cache, no executable memory: use PyTorch instead
        return None
    finally:
        torch.set_num_threads(n_threads)  # starting numba's threads changes OpenMP's thread count
    return kernels


def as_array(images: Tensor) -> NDArray[Any]:
    """Return a view of channels-last (N, C, H, W) images as a NumPy array (N, H, W, C); bfloat16 becomes int16."""
    images = images.detach().permute(0, 2, 3, 1)
    array: NDArray[Any] = (images.view(torch.int16) if images.dtype == torch.bfloat16 else images).numpy()
    return array
