"""Compute the output shape, parameters and multiply-adds of each layer, without torch.

A family expands a `[model]` table to a list of layers. The check for impossible networks traces this list when a recipe
is loaded. All other code uses `networks.tracing`, and `networks.build` builds modules from the traces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fmcli.choices import SourceFacts
from fmcli.errors import RecipeError
from fmcli.recipe import layers
from fmcli.recipe.recipe import MemberSpec

Shape = tuple[int, ...]  # (C, H, W), or (features,) after flattening


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """A layer with its shapes and costs.

    Args:
        layer: The layer.
        input_shape: Shape of the input without the batch axis.
        output_shape: Shape of the output without the batch axis.
        parameters: Number of trained parameters.
        multiply_adds: Multiply-adds of convolutions and dense layers in the forward pass of one image.
    """

    layer: layers.LayerSpec
    input_shape: Shape
    output_shape: Shape
    parameters: int
    multiply_adds: int


def trace_layers(network: Sequence[layers.LayerSpec], input_shape: Shape, n_classes: int) -> tuple[LayerTrace, ...]:
    """Trace the shape of an image through a network.

    Args:
        network: The layers of the network.
        input_shape: (C, H, W).
        n_classes: Number of logits that the last layer must return.

    Returns:
        One trace per layer.

    Raises:
        RecipeError: A layer cannot take its input, or the last layer does not return one logit per class.

    Example:
        >>> [trace.output_shape for trace in trace_layers([layers.Flatten(), layers.Dense(units=10)], (1, 28, 28), 10)]
        [(784,), (10,)]
    """
    traces: list[LayerTrace] = []
    shape = input_shape
    for index, layer in enumerate(network):
        try:
            trace = _trace(layer, shape)
        except ValueError as error:
            raise RecipeError("impossible network", problems=[f"layers[{index}]: {error}"]) from None
        traces.append(trace)
        shape = trace.output_shape
    if shape != (n_classes,):
        problem = f"layers: the last layer returns {show_shape(shape)}; expected {n_classes}, one logit per class"
        raise RecipeError("impossible network", problems=[problem])
    return tuple(traces)


def trace_members(
    members: Sequence[MemberSpec], source: SourceFacts
) -> tuple[dict[str, tuple[LayerTrace, ...]], list[str]]:
    """Trace the network of every member.

    Args:
        members: The members of a recipe.
        source: Image shape and classes of the recipe's data.

    Returns:
        The traces of each possible network by member name, and one problem per impossible network.
    """
    n_classes = len(source.class_names)
    traces, problems = {}, []
    for member in members:
        try:
            network = member.model.expand(source.input_shape, n_classes)
            traces[member.name] = trace_layers(network, source.input_shape, n_classes)
        except RecipeError as error:
            problems += [f"members.{member.name}.model.{problem}" for problem in error.problems]
    return traces, problems


def _trace(layer: layers.LayerSpec, shape: Shape) -> LayerTrace:
    """Trace one layer.

    Raises:
        ValueError: The layer cannot take this shape.
    """
    output, parameters, multiply_adds = shape, 0, 0
    match layer:
        case layers.Conv():
            channels, *_ = image = _image(shape, layer.type)
            kernel = pair(layer.kernel_size)
            sides = _count_windows(image, kernel, pair(layer.stride), layer.padding == "same", "kernel")
            output = (layer.filters, *sides)
            parameters = channels * math.prod(kernel) * layer.filters + layer.filters * layer.bias
            multiply_adds = channels * math.prod(kernel) * math.prod(output)
        case layers.MaxPool() | layers.AvgPool():
            image = _image(shape, layer.type)
            window = pair(layer.size)
            output = (image[0], *_count_windows(image, window, pair(layer.stride or layer.size), False, "window"))
        case layers.GlobalMaxPool() | layers.GlobalAvgPool():
            output = (_image(shape, layer.type)[0],)
        case layers.Dense():
            if len(shape) != 1:
                raise ValueError(f"dense needs flat input, got {show_shape(shape)}; add a flatten layer before it")
            output = (layer.units,)
            multiply_adds = shape[0] * layer.units
            parameters = multiply_adds + layer.units * layer.bias
        case layers.BatchNorm():
            parameters = 2 * shape[0]
        case layers.Flatten():
            output = (math.prod(shape),)
        case layers.Dropout() | layers.Activate():
            pass
    return LayerTrace(layer, shape, output, parameters, multiply_adds)


def _image(shape: Shape, kind: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"{kind} needs an image, got {show_shape(shape)}; move it before the flatten layer")
    return shape


def _count_windows(
    image: tuple[int, int, int], window: tuple[int, int], stride: tuple[int, int], same: bool, name: str
) -> tuple[int, int]:
    """Return the number of windows vertically and horizontally."""
    _, *sides = image
    if same:
        return (-(-sides[0] // stride[0]), -(-sides[1] // stride[1]))
    if window[0] > sides[0] or window[1] > sides[1]:
        raise ValueError(
            f"a {window[0]}×{window[1]} {name} is larger than the {sides[0]}×{sides[1]} feature map; use a smaller "
            f"{name}, fewer layers, or padding = 'same'"
        )
    return ((sides[0] - window[0]) // stride[0] + 1, (sides[1] - window[1]) // stride[1] + 1)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size as (height, width).

    Example:
        >>> pair(3), pair((3, 5))
        ((3, 3), (3, 5))
    """
    return (size, size) if isinstance(size, int) else size


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding (before, after) for ceil(side / stride) windows. If the total is odd, `after` is larger by 1.

    References:
        TensorFlow's "SAME" padding, with which the published systems were trained.

    Example:
        >>> same_padding(28, 4, 1), same_padding(28, 3, 2)
        ((1, 2), (0, 1))
    """
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def count_parameters(traces: Sequence[LayerTrace]) -> int:
    """Return the number of trained parameters of a traced network."""
    return sum(trace.parameters for trace in traces)


def show_shape(shape: Shape) -> str:
    """Return a shape as text.

    Example:
        >>> show_shape((1, 28, 28))
        '1×28×28'
    """
    return "×".join(str(side) for side in shape)
