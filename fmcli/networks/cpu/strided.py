"""Strided convolution whose weight gradient takes 0.4 to 0.8 of PyTorch's time in bfloat16 on a CPU."""

from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fmcli.networks.cpu import loading
from fmcli.networks.cpu.loading import as_array

_Pair = tuple[int, int]


class StridedConv2d(nn.Conv2d):
    """PyTorch's convolution, except that one matrix product with image patches (im2col) gives the weight gradient.

    PyTorch's own gradient, from oneDNN, is hardly faster on two threads than on one, and sometimes half as fast. The
    compiled kernel is used for training in bfloat16 on a CPU if the images are channels-last and have at least two
    channels. PyTorch handles all other cases. Without a stride, the patches would take too much memory.

    References:
        Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if self._is_suitable(images) and (kernels := loading.load_kernels(_StridedConv, images.dtype)) is not None:
            outputs = _StridedConv.apply(images, self.weight, self.bias, self.stride, self.padding, kernels)
            return cast(Tensor, outputs)
        return super().forward(images)

    def _is_suitable(self, images: Tensor) -> bool:
        return (
            self.weight.requires_grad
            and torch.is_grad_enabled()
            and images.device.type == "cpu"
            and images.dtype == self.weight.dtype == torch.bfloat16
            and images.ndim == 4
            and images.is_contiguous(memory_format=torch.channels_last)
            and self.in_channels > 1
            and (self.dilation, self.groups, self.padding_mode) == ((1, 1), 1, "zeros")
            and not isinstance(self.padding, str)
        )


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: _Pair,
        padding: _Pair,
        kernels: ModuleType,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.kernels, ctx.has_bias = stride, padding, kernels, bias is not None
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None, None]:
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        image_gradient = None
        if ctx.needs_input_grad[0]:
            image_gradient = torch.ops.aten.convolution_backward(
                gradient, images, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        bias_gradient = gradient.sum((0, 2, 3)) if ctx.has_bias else None
        return image_gradient, _weight_gradient(ctx, images, weight, gradient), bias_gradient, None, None, None

    @staticmethod
    def warm_up(kernels: ModuleType, dtype: torch.dtype) -> None:
        """Compute a gradient once, so that the kernel is compiled."""
        weight = torch.zeros((1, 2, 1, 1), dtype=dtype, requires_grad=True)
        images = torch.zeros((1, 2, 2, 2), dtype=dtype).contiguous(memory_format=torch.channels_last)
        _StridedConv.apply(images, weight, None, (2, 2), (0, 0), kernels).sum().backward()


def _weight_gradient(ctx: Any, images: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the weights, (n_filters, C, rows, columns)."""
    n_filters, n_channels, rows, columns = weight.shape
    patches = torch.empty((len(images), *gradient.shape[2:], rows, columns, n_channels), dtype=images.dtype)
    ctx.kernels.use_threads(torch.get_num_threads())
    bits = patches.view(torch.int16).numpy()
    ctx.kernels.gather_patches(as_array(images), bits, ctx.stride, ctx.padding)
    pixels = gradient.permute(0, 2, 3, 1).reshape(-1, n_filters)
    product = pixels.T @ patches.view(len(pixels), -1)
    return product.view(n_filters, rows, columns, n_channels).permute(0, 3, 1, 2)
