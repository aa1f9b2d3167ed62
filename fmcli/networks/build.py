"""Build a network from its traced layers."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from fmcli.networks.backbone import Backbone
from fmcli.networks.blocks import ChannelsLastFlatten, Residual, SqueezeExcite, walk_modules
from fmcli.networks.cpu.pooling import MaxPool2d
from fmcli.networks.cpu.strided import StridedConv2d
from fmcli.networks.dropout import Dropout, StochasticDepth
from fmcli.networks.initialization import initialize_layer
from fmcli.recipe import layers
from fmcli.recipe.layers import Activation, Initialization
from fmcli.recipe.tracing import LayerTrace, pair, same_padding, squeezed_units

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
        model = _build_sequence(traces)
    if generator is not None:
        for module in walk_modules(model):
            if isinstance(module, nn.Conv2d | nn.Linear):
                initialize_layer(module, init, generator)
            elif isinstance(module, Backbone):
                module.initialize(init, generator)
    return model.to(memory_format=torch.channels_last)


def _build_sequence(traces: Sequence[LayerTrace]) -> nn.Sequential:
    return nn.Sequential(*_pool_first([module for trace in traces for module in _build_layer(trace)]))


def _build_layer(trace: LayerTrace) -> Iterator[nn.Module]:
    layer, channels = trace.layer, trace.input_shape[0]
    match layer:
        case layers.Conv():
            yield from _build_conv(layer, trace.input_shape, output_columns=trace.output_shape[2])
        case layers.Dense():
            dense = nn.Linear(channels, layer.units, bias=layer.bias)
            vars(dense)["l2"] = layer.l2
            yield dense
        case layers.MaxPool():
            yield MaxPool2d(pair(layer.size), pair(layer.stride or layer.size))
        case layers.AvgPool():
            yield nn.AvgPool2d(pair(layer.size), pair(layer.stride or layer.size))
        case layers.GlobalMaxPool():
            yield from (nn.AdaptiveMaxPool2d(1), ChannelsLastFlatten())
        case layers.GlobalAvgPool():
            yield from (nn.AdaptiveAvgPool2d(1), ChannelsLastFlatten())
        case layers.BatchNorm():
            kind = nn.BatchNorm2d if len(trace.input_shape) == 3 else nn.BatchNorm1d
            yield kind(channels, eps=layer.eps, momentum=layer.momentum)
        case layers.Dropout():
            yield Dropout(layer.rate)
        case layers.Flatten():
            yield ChannelsLastFlatten()
        case layers.Activate():
            yield _ACTIVATIONS[layer.function]()
        case layers.SqueezeExcite() | layers.Residual() | layers.Backbone():
            yield _build_block(layer, trace)
    activation = getattr(layer, "activation", None)
    if activation is not None:
        yield _ACTIVATIONS[activation]()


def _build_block(layer: layers.SqueezeExcite | layers.Residual | layers.Backbone, trace: LayerTrace) -> nn.Module:
    match layer:
        case layers.SqueezeExcite():
            channels = trace.input_shape[0]
            return SqueezeExcite(channels, squeezed_units(layer, channels))
        case layers.Residual():
            body, shortcut = (_build_sequence(trace.inner[name]) for name in ("body", "shortcut"))
            return Residual(body, shortcut, StochasticDepth(layer.stochastic_depth))
        case layers.Backbone():
            return Backbone(layer, trace.input_shape)


def _pool_first(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Move max-pooling before a preceding ReLU. Values and gradients stay equal, and ReLU processes fewer pixels."""
    ordered = list(modules)
    for index, (before, after) in enumerate(itertools.pairwise(modules)):
        if isinstance(before, nn.ReLU) and isinstance(after, nn.MaxPool2d):
            ordered[index], ordered[index + 1] = after, before
    return ordered


def _build_conv(layer: layers.Conv, input_shape: tuple[int, ...], *, output_columns: int) -> Iterator[nn.Module]:
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
    conv = kind(channels, layer.filters, kernel, stride=stride, padding=padding, groups=layer.groups, bias=layer.bias)
    vars(conv)["l2"] = layer.l2
    yield conv


def add_l2_gradients(model: nn.Module) -> None:
    """Add the gradient of the L2 penalties, l2 × the sum of squared kernel weights. Call after `backward`.

    As in Keras, biases are not penalized and there is no factor of one half: the gradient is 2 × l2 × weight.
    """
    for module in model.modules():
        l2 = vars(module).get("l2")  # set by build_model
        if l2 and isinstance(module, nn.Conv2d | nn.Linear) and module.weight.grad is not None:
            module.weight.grad.add_(module.weight.detach(), alpha=2 * l2)
