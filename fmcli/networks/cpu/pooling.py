"""Max-pooling that trains faster on a CPU than PyTorch's, alone and after a one-channel convolution."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fmcli.networks.cpu import loading
from fmcli.networks.cpu.loading import as_array

_N_PARTS = 64  # parts of a batch with separate gradient sums, so that results do not depend on the thread count


class MaxPool2d(nn.MaxPool2d):
    """Max-pooling with the same values and gradients as PyTorch's, but without second derivatives.

    When training on a CPU, PyTorch stores each index in eight bytes, fills the gradient with zeros and then writes it
    element by element. The compiled kernels store one byte and write the gradient once, in vectors. They cover 2 × 2
    tiles of channels-last images on Linux. PyTorch handles all other cases, and prediction, where loading the kernels
    takes longer than they save.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Pool (N, C, H, W)."""
        if (
            _has_tiles(self)
            and _is_suitable(images)
            and (kernels := loading.load_kernels(_Pool, images.dtype)) is not None
        ):
            return cast(Tensor, _Pool.apply(images, kernels))
        return cast(Tensor, super().forward(images))


class ConvPoolReLU(nn.Sequential):
    """One-channel convolution, max-pooling and ReLU in one kernel. Trains in 0.4 of PyTorch's time in bfloat16.

    Values and gradients are computed in float32 and then rounded. If two pixels of a tile are equal only after
    rounding, the larger one receives the gradient, not the first. Prediction runs the three separate layers.
    Among the shipped recipes, `roy-*` and `becker-cnn` start with these layers.
    """

    @staticmethod
    def fits(layers: Sequence[nn.Module]) -> bool:
        """Return whether layers are a 3 × 3 convolution of one channel, 2 × 2 max-pooling and ReLU."""
        match layers:
            case nn.Conv2d() as conv, nn.MaxPool2d() as pool, nn.ReLU():
                found = (conv.in_channels, conv.kernel_size, conv.stride, conv.dilation, conv.padding_mode)
                is_plain = found == (1, (3, 3), (1, 1), (1, 1), "zeros") and not isinstance(conv.padding, str)
                return is_plain and _has_tiles(pool)
        return False

    def forward(self, images: Tensor) -> Tensor:
        """Convolve (N, 1, H, W) to (N, n_filters, …), pool and apply ReLU."""
        conv = cast(nn.Conv2d, self[0])
        if (
            self._is_suitable(conv, images)
            and (kernels := loading.load_kernels(_ConvPoolReLU, images.dtype)) is not None
        ):
            return cast(Tensor, _ConvPoolReLU.apply(images, conv.weight, conv.bias, conv.padding, kernels))
        return cast(Tensor, super().forward(images))  # type: ignore[no-untyped-call]

    @staticmethod
    def _is_suitable(conv: nn.Conv2d, images: Tensor) -> bool:
        return (
            conv.weight.requires_grad
            and not images.requires_grad
            and torch.is_grad_enabled()
            and images.device.type == "cpu"
            and images.dtype == conv.weight.dtype == torch.bfloat16
            and images.shape[2] + 2 * int(conv.padding[0]) >= 4
            and images.shape[3] + 2 * int(conv.padding[1]) >= 4
        )


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: ModuleType) -> Tensor:
        N, C, H, W = images.shape
        shape = (N, C, H // 2, W // 2)
        maxima, indices = _empty(shape, images.dtype), _empty(shape, torch.uint8)
        kernels.use_threads(torch.get_num_threads())
        kernels.pool(as_array(images), as_array(maxima), as_array(indices))
        ctx.save_for_backward(indices)
        ctx.kernels, ctx.shape = kernels, images.shape
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        images = _empty(ctx.shape, gradient.dtype)
        if images.shape[2] % 2 or images.shape[3] % 2:
            images.zero_()  # the last row or column is in no tile
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        ctx.kernels.use_threads(torch.get_num_threads())
        ctx.kernels.pool_backward(as_array(gradient), as_array(indices), as_array(images))
        return images, None

    @staticmethod
    def warm_up(kernels: ModuleType, dtype: torch.dtype) -> None:
        """Pool forwards and backwards once, so that both kernels are compiled."""
        images = torch.zeros((1, 1, 2, 2), dtype=dtype, requires_grad=True)
        _Pool.apply(images, kernels).sum().backward()


class _ConvPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], kernels: ModuleType
    ) -> Tensor:
        rows, columns = padding
        padded = F.pad(images.float().squeeze(1), (columns, columns, rows, rows)).contiguous()
        N, H, W = padded.shape
        shape = (N, len(weight), (H - 2) // 2, (W - 2) // 2)
        maxima, indices = _empty(shape, images.dtype), _empty(shape, torch.uint8)
        biases = torch.zeros(len(weight)) if bias is None else bias.float()
        weights = torch.cat((weight.float().flatten(1).T, biases[None]))
        kernels.use_threads(torch.get_num_threads())
        kernels.convolve_and_pool(padded.numpy(), weights.numpy(), as_array(maxima), as_array(indices))
        ctx.save_for_backward(padded, indices)
        ctx.kernels, ctx.has_bias = kernels, bias is not None
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:
        padded, indices = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sums = torch.zeros(_N_PARTS, 10, gradient.shape[1])
        ctx.kernels.use_threads(torch.get_num_threads())
        ctx.kernels.convolve_and_pool_backward(padded.numpy(), as_array(gradient), as_array(indices), sums.numpy())
        total = sums.sum(0).to(gradient.dtype)
        return None, total[:9].T.reshape(-1, 1, 3, 3), total[9] if ctx.has_bias else None, None, None

    @staticmethod
    def warm_up(kernels: ModuleType, dtype: torch.dtype) -> None:
        """Compute forwards and backwards once, so that both kernels are compiled."""
        weight = torch.zeros((1, 1, 3, 3), dtype=dtype, requires_grad=True)
        _ConvPoolReLU.apply(torch.zeros((1, 1, 4, 4), dtype=dtype), weight, None, (0, 0), kernels).sum().backward()


def _has_tiles(pool: nn.MaxPool2d) -> bool:
    found = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices, pool.ceil_mode)
    return found == ((2, 2), (2, 2), 0, 1, False, False)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, memory_format=torch.channels_last)


def _is_suitable(images: Tensor) -> bool:
    return (
        images.requires_grad
        and torch.is_grad_enabled()
        and images.device.type == "cpu"
        and images.dtype in (torch.float32, torch.bfloat16)
        and images.is_contiguous(memory_format=torch.channels_last)
        and min(images.shape[2:]) >= 2
    )
