"""Max-pooling that learns in about 0.4 of the time that PyTorch's takes on a CPU."""

import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MaxPool2d(nn.MaxPool2d):
    """PyTorch's max-pooling: equal numbers and gradients; there are no second derivatives.

    For learning on a CPU, PyTorch keeps each maximum's place in eight bytes, fills the gradient with zeros, and then
    writes it number by number. `pool_kernels` keeps one byte, and writes the gradient once, by vectors. They are for
    tiles of 2 × 2, channels last, on Linux. All else PyTorch does, and prediction, where loading them takes longer than
    they save.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pool (N, C, H, W)."""
        if self._has_kernels and _is_suitable(images) and (kernels := _load_kernels(images.dtype)) is not None:
            return cast(Tensor, _Pool.apply(images, kernels))
        return cast(Tensor, super().forward(images))

    @property
    def _has_kernels(self) -> bool:
        asked = (self.kernel_size, self.stride, self.padding, self.dilation, self.return_indices, self.ceil_mode)
        return asked == ((2, 2), (2, 2), 0, 1, False, False)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: ModuleType) -> Tensor:
        N, C, H, W = images.shape
        maxima = _create((N, C, H // 2, W // 2), images.dtype)
        places = _create(maxima.shape, torch.uint8)
        kernels.use_threads(torch.get_num_threads())
        kernels.pool(_as_array(images), _as_array(maxima), _as_array(places))
        ctx.save_for_backward(places)
        ctx.kernels, ctx.shape = kernels, images.shape
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        images = _create(ctx.shape, gradient.dtype)
        if images.shape[2] % 2 or images.shape[3] % 2:
            images.zero_()  # what lies in no tile receives nothing
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        ctx.kernels.use_threads(torch.get_num_threads())
        ctx.kernels.pool_backward(_as_array(gradient), _as_array(places), _as_array(images))
        return images, None


def _create(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, memory_format=torch.channels_last)


def _as_array(images: Tensor) -> NDArray[Any]:
    """Return the same memory as (N, H, W, C), bfloat16 as int16."""
    images = images.detach().permute(0, 2, 3, 1)
    array: NDArray[Any] = (images.view(torch.int16) if images.dtype == torch.bfloat16 else images).numpy()
    return array


def _is_suitable(images: Tensor) -> bool:
    return (
        images.requires_grad
        and torch.is_grad_enabled()
        and images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.bfloat16)
        and images.is_contiguous(memory_format=torch.channels_last)
        and min(images.shape[2:]) >= 2
    )


def _load_kernels(dtype: torch.dtype) -> ModuleType | None:
    """Return `pool_kernels`, compiled for a dtype, or None where they cannot be had."""
    kernels = _compile_kernels(dtype) if sys.platform == "linux" else None
    return None if kernels is None or kernels.is_forked() else kernels


@cache
def _compile_kernels(dtype: torch.dtype) -> ModuleType | None:
    n_threads = torch.get_num_threads()
    try:
        from fmcli.models import pool_kernels

        if pool_kernels.is_forked() or not pool_kernels.shares_threads():
            return None
        images = torch.zeros((1, 1, 2, 2), dtype=dtype, requires_grad=True)
        _Pool.apply(images, pool_kernels).sum().backward()
    except Exception:  # no OpenMP, a full disk, a damaged cache, no right to make machine code: PyTorch pools
        return None
    finally:
        torch.set_num_threads(n_threads)  # starting numba's threads sets the number of OpenMP's
    return pool_kernels
