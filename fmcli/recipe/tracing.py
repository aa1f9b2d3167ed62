"""Compute the output shape, parameters and multiply-adds of each layer, without torch.

A family expands a `[model]` table to a list of layers. The check for impossible networks traces this list when a recipe
is loaded. All other code uses `networks.tracing`, and `networks.build` builds modules from the traces.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fmcli.choices import SourceFacts
from fmcli.errors import RecipeError
from fmcli.recipe import layers
from fmcli.recipe.recipe import MemberSpec

Shape = tuple[int, ...]  # (C, H, W), or (features,) after flattening
MeasureBackbone = Callable[[layers.Backbone, Shape, int], tuple[int, int]]
"""Return the parameters and multiply-adds of a backbone from its input shape and the number of classes."""


@dataclass(frozen=True, slots=True)
class LayerTrace:
    """A layer with its shapes and costs.

    Args:
        layer: The layer.
        input_shape: Shape of the input without the batch axis.
        output_shape: Shape of the output without the batch axis.
        parameters: Number of trained parameters, including inner layers.
        multiply_adds: Multiply-adds of convolutions and dense layers in the forward pass of one image, including inner
            layers.
        inner: Traces of the inner layers by name. A residual layer has `body` and `shortcut`; other layers have none.
    """

    layer: layers.LayerSpec
    input_shape: Shape
    output_shape: Shape
    parameters: int
    multiply_adds: int
    inner: Mapping[str, tuple["LayerTrace", ...]] = field(default_factory=dict)


def trace_layers(
    network: Sequence[layers.LayerSpec], input_shape: Shape, n_classes: int, measure: MeasureBackbone | None = None
) -> tuple[LayerTrace, ...]:
    """Trace the shape of an image through a network.

    Args:
        network: The layers of the network.
        input_shape: (C, H, W).
        n_classes: Number of logits that the last layer must return.
        measure: Measures backbones. If None, they count as 0 parameters and multiply-adds.

    Returns:
        One trace per layer.

    Raises:
        RecipeError: A layer cannot take its input, or the last layer does not return one logit per class.

    Example:
        >>> [trace.output_shape for trace in trace_layers([layers.Flatten(), layers.Dense(units=10)], (1, 28, 28), 10)]
        [(784,), (10,)]
    """
    traces = _trace_sequence(network, input_shape, "layers", measure)
    shape = traces[-1].output_shape if traces else input_shape
    if shape != (n_classes,):
        problem = f"layers: the last layer returns {show_shape(shape)}; expected {n_classes}, one logit per class"
        raise RecipeError("impossible network", problems=[problem])
    return traces


def trace_members(
    members: Sequence[MemberSpec], source: SourceFacts, measure: MeasureBackbone | None = None
) -> tuple[dict[str, tuple[LayerTrace, ...]], list[str]]:
    """Trace the network of every member.

    Args:
        members: The members of a recipe.
        source: Image shape and classes of the recipe's data.
        measure: See `trace_layers`.

    Returns:
        The traces of each possible network by member name, and one problem per impossible network.
    """
    n_classes = len(source.class_names)
    traces, problems = {}, []
    for member in members:
        try:
            network = member.model.expand(source.input_shape, n_classes)
            traces[member.name] = trace_layers(network, source.input_shape, n_classes, measure)
        except RecipeError as error:
            problems += [f"members.{member.name}.model.{problem}" for problem in error.problems]
    return traces, problems


def _trace_sequence(
    network: Sequence[layers.LayerSpec], shape: Shape, path: str, measure: MeasureBackbone | None
) -> tuple[LayerTrace, ...]:
    """Trace layers. An error quotes the path of the layer, such as `layers[3].body[1]`."""
    traces: list[LayerTrace] = []
    for index, layer in enumerate(network):
        layer_path = f"{path}[{index}]"
        try:
            traces.append(_trace(layer, shape, layer_path, measure))
        except ValueError as error:
            raise RecipeError("impossible network", problems=[f"{layer_path}: {error}"]) from None
        shape = traces[-1].output_shape
    return tuple(traces)


def _trace(layer: layers.LayerSpec, shape: Shape, path: str, measure: MeasureBackbone | None) -> LayerTrace:
    """Trace one layer.

    Raises:
        ValueError: The layer cannot take this shape.
        RecipeError: An inner layer cannot take its input.
    """
    output, parameters, multiply_adds = shape, 0, 0
    match layer:
        case layers.Conv():
            return _trace_conv(layer, _image(shape, layer.type))
        case layers.Residual():
            return _trace_residual(layer, shape, path, measure)
        case layers.Backbone():
            output = (layer.n_classes,)
            if measure is not None:
                parameters, multiply_adds = measure(layer, shape, layer.n_classes)
        case layers.MaxPool() | layers.AvgPool():
            image = _image(shape, layer.type)
            window = pair(layer.size)
            output = (image[0], *_count_windows(image, window, pair(layer.stride or layer.size), False, "window"))
        case layers.GlobalMaxPool() | layers.GlobalAvgPool():
            output = (_image(shape, layer.type)[0],)
        case layers.SqueezeExcite():
            channels, units = _image(shape, layer.type)[0], squeezed_units(layer, shape[0])
            multiply_adds = 2 * channels * units
            parameters = multiply_adds + units + channels
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


def _trace_conv(layer: layers.Conv, image: tuple[int, int, int]) -> LayerTrace:
    channels, kernel = image[0], pair(layer.kernel_size)
    if channels % layer.groups or layer.filters % layer.groups:
        raise ValueError(
            f"got groups = {layer.groups}; expected a divisor of {channels} channels and {layer.filters} filters"
        )
    sides = _count_windows(image, kernel, pair(layer.stride), layer.padding == "same", "kernel")
    kernel_weights = channels // layer.groups * math.prod(kernel)
    return LayerTrace(
        layer,
        input_shape=image,
        output_shape=(layer.filters, *sides),
        parameters=layer.filters * (kernel_weights + layer.bias),
        multiply_adds=layer.filters * kernel_weights * math.prod(sides),
    )


def _trace_residual(layer: layers.Residual, shape: Shape, path: str, measure: MeasureBackbone | None) -> LayerTrace:
    body = _trace_sequence(layer.body, shape, f"{path}.body", measure)
    output = body[-1].output_shape
    shortcut = _trace_sequence(_shortcut_layers(layer, shape, output), shape, f"{path}.shortcut", measure)
    return LayerTrace(
        layer,
        shape,
        output,
        parameters=count_parameters(body + shortcut),
        multiply_adds=count_multiply_adds(body + shortcut),
        inner={"body": body, "shortcut": shortcut},
    )


def _shortcut_layers(layer: layers.Residual, shape: Shape, output: Shape) -> tuple[layers.RecipeLayer, ...]:
    """Return the layers that give the input of a residual layer the shape of the body's output."""
    if shape == output:
        return ()
    change = f"the body turns {show_shape(shape)} into {show_shape(output)}"
    if layer.shortcut == "identity":
        raise ValueError(f"{change}, but the shapes must be equal; use shortcut = 'auto' or a different body")
    if len(shape) != len(output):
        raise ValueError(f"{change}, but a shortcut cannot flatten an image; flatten it after the residual layer")
    if len(shape) == 1:
        return layers.Dense(units=output[0], bias=False), layers.BatchNorm()
    vertical, horizontal = (-(-before // after) for before, after in zip(shape[1:], output[1:], strict=True))
    stride = vertical if vertical == horizontal else (vertical, horizontal)
    conv = layers.Conv(filters=output[0], kernel_size=1, stride=stride, bias=False)
    if _trace_conv(conv, _image(shape, conv.type)).output_shape != output:
        raise ValueError(f"{change}, which no stride of a 1×1 convolution does; use padding = 'same' in the body")
    return conv, layers.BatchNorm()


def squeezed_units(layer: layers.SqueezeExcite, channels: int) -> int:
    """Return the number of units of the first dense layer of squeeze-excite."""
    return max(channels // layer.reduction, 1)


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


def count_multiply_adds(traces: Sequence[LayerTrace]) -> int:
    """Return the multiply-adds of a traced network for one image."""
    return sum(trace.multiply_adds for trace in traces)


def walk_traces(traces: Sequence[LayerTrace], prefix: str = "") -> Iterator[tuple[str, LayerTrace]]:
    """Yield each layer and then its inner layers, with a path such as `3.body.1`."""
    for index, trace in enumerate(traces):
        path = f"{prefix}{index}"
        yield path, trace
        for name, inner in trace.inner.items():
            yield from walk_traces(inner, f"{path}.{name}.")


def show_shape(shape: Shape) -> str:
    """Return a shape as text.

    Example:
        >>> show_shape((1, 28, 28))
        '1×28×28'
    """
    return "×".join(str(side) for side in shape)
