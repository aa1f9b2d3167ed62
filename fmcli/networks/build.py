"""Build a network from its traced layers."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fmcli.networks.cpu.pooling import MaxPool2d
from fmcli.networks.cpu.strided import StridedConv2d
from fmcli.recipe.layers import (
    Activate,
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Initialization,
    MaxPool,
)
from fmcli.recipe.layers import Dropout as DropoutSpec
from fmcli.recipe.tracing import LayerTrace, pair, same_padding

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def build_model(
    traces: Sequence[LayerTrace], *, init: Initialization = "torch", generator: torch.Generator | None = None
) -> nn.Sequential:
    """Build a network with initial weights.

    Args:
        traces: The layers of the network with their shapes; see `networks.tracing`.
        init: Initialization of the kernels.
        generator: CPU generator that draws the weights; equal seeds give equal weights. If None, weights are arbitrary,
            for a network whose weights will be loaded.

    Returns:
        A module from float (N, C, H, W) to logits (N, n_classes), with channels-last weights.
    """
    with torch.random.fork_rng(devices=()):  # PyTorch draws initial weights; leave the caller's random state unchanged
        modules = [module for trace in traces for module in _build_layer(trace)]
    model = nn.Sequential(*_pool_first(modules))
    if generator is not None:
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                _initialize(module, init, generator)
    return model.to(memory_format=torch.channels_last)


def _build_layer(trace: LayerTrace) -> Iterator[nn.Module]:
    layer = trace.layer
    match layer:
        case Conv():
            yield from _build_conv(layer, trace.input_shape, output_columns=trace.output_shape[2])
        case Dense():
            dense = nn.Linear(trace.input_shape[0], layer.units, bias=layer.bias)
            vars(dense)["l2"] = layer.l2
            yield dense
        case MaxPool():
            yield MaxPool2d(pair(layer.size), pair(layer.stride or layer.size))
        case AvgPool():
            yield nn.AvgPool2d(pair(layer.size), pair(layer.stride or layer.size))
        case GlobalMaxPool():
            yield from (nn.AdaptiveMaxPool2d(1), ChannelsLastFlatten())
        case GlobalAvgPool():
            yield from (nn.AdaptiveAvgPool2d(1), ChannelsLastFlatten())
        case BatchNorm():
            kind = nn.BatchNorm2d if len(trace.input_shape) == 3 else nn.BatchNorm1d
            yield kind(trace.input_shape[0], eps=layer.eps, momentum=layer.momentum)
        case DropoutSpec():
            yield Dropout(layer.rate)
        case Flatten():
            yield ChannelsLastFlatten()
        case Activate():
            yield _ACTIVATIONS[layer.function]()
    if isinstance(layer, Conv | Dense | BatchNorm) and layer.activation is not None:
        yield _ACTIVATIONS[layer.activation]()


def _pool_first(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Move max-pooling before a preceding ReLU. Values and gradients stay equal, and ReLU processes fewer pixels."""
    ordered = list(modules)
    for index, (before, after) in enumerate(itertools.pairwise(modules)):
        if isinstance(before, nn.ReLU) and isinstance(after, nn.MaxPool2d):
            ordered[index], ordered[index + 1] = after, before
    return ordered


def _build_conv(layer: Conv, input_shape: tuple[int, ...], *, output_columns: int) -> Iterator[nn.Module]:
    channels, *sides = input_shape
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    top = bottom = left = right = 0
    if layer.padding == "same":
        (top, bottom), (left, right) = (same_padding(*axis) for axis in zip(sides, kernel, stride, strict=True))
    if channels == 1 and output_columns == 1:
        # With a horizontal stride above 1, torch 2.15 returns garbage on some CPUs. Crop the columns to the right of
        # the only window: a stride of 1 then gives the same column.
        right, stride = kernel[1] - sides[1] - left, (stride[0], 1)
    padding = (0, 0)
    if top == bottom and left == right:
        padding = (top, left)
    else:
        yield nn.ZeroPad2d((left, right, top, bottom))  # a negative amount crops
    kind = nn.Conv2d if stride == (1, 1) else StridedConv2d
    conv = kind(channels, layer.filters, kernel, stride=stride, padding=padding, bias=layer.bias)
    vars(conv)["l2"] = layer.l2
    yield conv


class ChannelsLastFlatten(nn.Flatten):
    """Flatten by rows, columns and channels, as Keras does. Images have this memory order, so nothing is copied."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten (N, C, H, W), or return (N, n_features) unchanged."""
        return images.permute(0, 2, 3, 1).flatten(1) if images.ndim == 4 else images


class Dropout(nn.Module):
    """Inverted dropout with its own generator, so that a run can be resumed exactly.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, JMLR 2014.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """In training, set random inputs to zero and scale up the rest."""
        if not self.training or self.rate == 0:
            return inputs
        dropped = min(round(self.rate * 2**16), 2**16 - 1)  # out of 65,536 values; at least one is kept
        keep = draw_random_bits(inputs, self.generator).ge_(dropped - 2**15).to(inputs.dtype)
        return inputs * keep.mul_(1 / (1 - self.rate))


def draw_random_bits(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw 16 random bits for each element of a tensor.

    One draw of 64 bits serves four elements. On a CPU, one draw per element takes longer than a small convolution.

    Returns:
        int16, uniform over its range, with the shape and strides of `like`.
    """
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].as_strided(like.size(), like.stride())


def set_dropout_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Make all dropout layers of a network draw from one generator, which must be on the network's device."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator


def add_l2_gradients(model: nn.Module) -> None:
    """Add the gradient of the L2 penalties, l2 × the sum of squared kernel weights. Call after `backward`.

    As in Keras, biases are not penalized and there is no factor of one half: the gradient is 2 × l2 × weight.
    """
    for module in model.modules():
        l2 = vars(module).get("l2")  # set by build_model
        if l2 and isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            module.weight.grad.add_(module.weight.detach(), alpha=2 * l2)


def _initialize(module: nn.Conv2d | nn.Linear, init: Initialization, generator: torch.Generator) -> None:
    """Draw the kernel of a layer.

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
        He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    weight, bias = module.weight, module.bias
    match init:
        case "torch":  # the default of nn.Linear and nn.Conv2d, drawn from our generator
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(bias, -bound, bound, generator=generator)
                return
        case "glorot-uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "he-uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
        case "he-normal":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    if bias is not None:
        nn.init.zeros_(bias)
