"""Networks: traced and built shapes, published sizes, initial weights, dropout, L2 penalties, bfloat16, inference."""

import copy
import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fmcli.choices import Views
from fmcli.errors import RecipeError
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.blocks import ChannelsLastFlatten
from fmcli.networks.build import add_l2_gradients
from fmcli.networks.cpu import loading
from fmcli.networks.cpu.pooling import MaxPool2d
from fmcli.networks.dropout import Dropout, draw_random_bits, set_dropout_generator
from fmcli.networks.inference import InferenceNetwork, predict_logits
from fmcli.recipe.families.kernel_cnn import KernelCnnSpec
from fmcli.recipe.families.sequential import SequentialSpec
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
    RecipeLayer,
    Residual,
    SqueezeExcite,
)
from fmcli.recipe.layers import Dropout as DropoutSpec
from fmcli.recipe.tracing import count_parameters, same_padding, trace_layers
from tests.networks.helpers import build_network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def expand(model, n_classes=10, input_shape=(1, 28, 28)):
    return model.expand(input_shape, n_classes)


def shapes_of(model, input_shape):
    """Return the shape after each module without the batch axis, computed on the meta device."""
    images = torch.empty(2, *input_shape, device="meta")
    shapes = []
    for module in model.to("meta"):
        images = module(images)
        shapes.append(tuple(images.shape[1:]))
    return shapes


# --- published sizes -------------------------------------------------------------------------------------

# An et al. 2020, arXiv 2008.10400: kernel size, widths, parameters, last feature map's side and channels.
PUBLISHED = {
    "M3": (3, range(32, 177, 16), 1_124_180, 8, 176),
    "M5": (5, range(32, 161, 32), 1_128_180, 8, 160),
    "M7": (7, range(48, 193, 48), 2_291_972, 4, 192),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_networks_of_an_et_al_have_their_published_size(name):
    kernel_size, widths, parameters, side, channels = PUBLISHED[name]
    layers = expand(KernelCnnSpec(kernel_size=kernel_size, widths=tuple(widths)))
    traces = trace_layers(layers, (1, 28, 28), 10)
    assert count_parameters(traces) == parameters
    [flatten] = [trace for trace in traces if isinstance(trace.layer, Flatten)]
    assert flatten.input_shape == (channels, side, side)
    sides = [trace.output_shape[1] for trace in traces if isinstance(trace.layer, Conv)]
    assert sides == [28 - (kernel_size - 1) * index for index in range(1, len(sides) + 1)]

    model = build_network(layers, (1, 28, 28), 10)
    assert parameters_of(model) == parameters
    assert {module.kernel_size for module in model if isinstance(module, nn.Conv2d)} == {(kernel_size, kernel_size)}
    shapes = shapes_of(model, (1, 28, 28))
    [flatten_index] = [index for index, module in enumerate(model) if isinstance(module, nn.Flatten)]
    assert shapes[flatten_index - 1] == (channels, side, side)
    assert shapes[-1] == (10,)


RELU = {"activation": "relu"}
CONVS = {"type": "conv", "kernel_size": 3, **RELU}
# Anastasopoulos, Mpofu and Smith, "Classifying MNIST-Fashion Clothing Articles Using CNNs".
AMS_BASELINE = [
    {**CONVS, "filters": 16},
    {**CONVS, "filters": 16},
    {"type": "max-pool", "size": 2},
    {"type": "dropout", "rate": 0.5},
    {**CONVS, "filters": 32},
    {**CONVS, "filters": 32},
    {"type": "max-pool", "size": 2},
    {"type": "dropout", "rate": 0.3},
    {"type": "flatten"},
    {"type": "dense", "units": 128, **RELU},
    {"type": "dropout", "rate": 0.2},
    {"type": "dense", "units": 10},
]


def test_the_ams_baseline_has_its_published_size():
    layers = expand(SequentialSpec.model_validate({"layers": AMS_BASELINE}))
    traces = trace_layers(layers, (1, 28, 28), 10)
    assert count_parameters(traces) == 83_322
    assert [trace.output_shape for trace in traces if isinstance(trace.layer, Flatten)] == [(512,)]
    model = build_network(layers, (1, 28, 28), 10)
    assert parameters_of(model) == 83_322
    assert shapes_of(model, (1, 28, 28))[-1] == (10,)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("input_shape", "n_classes", "n_stages"),
    [
        ((1, 8, 8), 10, 4),
        ((1, 8, 8), 10, 7),
        ((3, 32, 32), 100, 3),
        ((1, 64, 48), 2, 5),
        ((4, 9, 30), 7, 2),
        ((1, 1, 1), 3, 1),
    ],
)
def test_the_pooled_form_takes_any_image_size(input_shape, n_classes, n_stages, kernel_size, depth):
    widths = tuple(4 + 2 * stage for stage in range(n_stages))
    spec = KernelCnnSpec(kernel_size=kernel_size, widths=widths, form="pooled", depth=depth)
    layers = expand(spec, n_classes, input_shape)
    assert sum(isinstance(layer, Conv) for layer in layers) == 1 + depth * (n_stages - 1)
    model = build_network(layers, input_shape, n_classes, generator=seeded())
    assert parameters_of(model) == count_parameters(trace_layers(layers, input_shape, n_classes))
    logits = model.eval()(torch.rand(2, *input_shape))
    assert logits.shape == (2, n_classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("form", ["plain", "pooled"])
def test_each_width_may_have_a_kernel_size_of_its_own(form):
    spec = KernelCnnSpec(kernel_size=(7, 3, 1), widths=(4, 5, 6), form=form)
    sizes = {layer.filters: layer.kernel_size for layer in expand(spec, 10, (1, 28, 28)) if isinstance(layer, Conv)}
    assert sizes == {4: 7, 5: 3, 6: 1}
    assert spec.kernel_group == "1+3+7"
    equal = KernelCnnSpec(kernel_size=(3, 3), widths=(4, 5), form=form)
    assert expand(equal, 10, (1, 28, 28)) == expand(equal.model_copy(update={"kernel_size": 3}), 10, (1, 28, 28))


# --- traced against built --------------------------------------------------------------------------------

sizes = st.integers(1, 5) | st.tuples(st.integers(1, 5), st.integers(1, 5))
small = st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))
activations = st.none() | st.sampled_from(get_args(Activation))
convs = st.builds(
    Conv,
    filters=st.integers(1, 4),
    kernel_size=sizes,
    stride=small,
    padding=st.sampled_from(["valid", "same"]),
    activation=activations,
    bias=st.booleans(),
)
pools = st.builds(MaxPool, size=small, stride=st.none() | small) | st.builds(
    AvgPool, size=small, stride=st.none() | small
)
anywhere = (
    st.builds(BatchNorm, activation=activations)
    | st.builds(DropoutSpec, rate=st.sampled_from([0.0, 0.5]))
    | st.builds(Activate, function=st.sampled_from(get_args(Activation)))
)
to_flat = st.builds(Flatten) | st.builds(GlobalMaxPool) | st.builds(GlobalAvgPool)
flat = st.builds(Flatten) | st.builds(Dense, units=st.integers(1, 5), activation=activations, bias=st.booleans())
networks = st.tuples(
    st.lists(convs | pools | anywhere, min_size=1, max_size=5), to_flat, st.lists(flat | anywhere, max_size=3)
).map(lambda parts: [*parts[0], parts[1], *parts[2]])
input_shapes = st.tuples(st.integers(1, 3), st.integers(3, 14), st.integers(3, 14))


def test_random_networks_have_every_kind_of_layer_without_inner_layers():
    drawn = {Conv, MaxPool, AvgPool, BatchNorm, DropoutSpec, Activate, Flatten, GlobalMaxPool, GlobalAvgPool, Dense}
    assert drawn == set(get_args(get_args(RecipeLayer)[0])) - {SqueezeExcite, Residual}  # in test_nested


@settings(max_examples=60)
@given(networks, input_shapes)
def test_traced_shapes_and_parameters_equal_the_networks(layers, input_shape):
    ending = [Flatten(), Dense(units=2)]
    try:
        traces = trace_layers([*layers, *ending], input_shape, 2)
    except RecipeError as error:
        # The named layer must be the first that torch cannot apply either.
        index = int(error.problems[0].removeprefix("layers[").partition("]")[0])
        layer = layers[index]
        assert isinstance(layer, Conv | MaxPool | AvgPool)
        before = shape_after([*layers[:index], *ending], input_shape, drop=2)
        window = layer.kernel_size if isinstance(layer, Conv) else layer.size
        window = (window, window) if isinstance(window, int) else window
        assert window[0] > before[1] or window[1] > before[2]
        return
    for index, trace in enumerate(traces[:-2]):
        prefix = [*layers[: index + 1], *ending]
        assert shape_after(prefix, input_shape, drop=2) == trace.output_shape
        assert traces[index + 1].input_shape == trace.output_shape
    model = build_network([*layers, *ending], input_shape, 2)
    assert parameters_of(model) == count_parameters(traces)


def shape_after(layers, input_shape, drop):
    shapes = [input_shape, *shapes_of(build_network(layers, input_shape, 2), input_shape)]
    return shapes[-1 - drop]


@settings(max_examples=40)
@given(convs, st.tuples(st.integers(1, 2), st.integers(5, 11), st.integers(5, 11)))
@example(Conv(filters=1, kernel_size=4, stride=(1, 2)), (1, 5, 5))  # torch 2.15 returns garbage for these
@example(Conv(filters=8, kernel_size=3, stride=(1, 9), padding="same"), (1, 9, 8))
def test_convolution_equals_a_slow_loop(layer, input_shape):
    layer = layer.model_copy(update={"activation": None})
    channels, height, width = input_shape
    model = build_network([layer, GlobalAvgPool(), Dense(units=2)], input_shape, 2, generator=seeded())
    convolve = model[:-3]  # without the pooling, its flattening and the dense layer
    image = torch.rand(1, *input_shape, generator=seeded(1))
    [weight, *bias] = (parameter.detach().double().numpy() for parameter in convolve.parameters())
    kernel, stride = ((x, x) if isinstance(x, int) else x for x in (layer.kernel_size, layer.stride))
    before = (0, 0)
    if layer.padding == "same":  # TensorFlow's definition
        before = tuple(
            max((-(-side // step) - 1) * step + k - side, 0) // 2
            for side, k, step in zip((height, width), kernel, stride, strict=True)
        )
    result = convolve(image)[0].detach().numpy()
    pixels = image[0].double().numpy()
    expected = np.zeros(result.shape)
    for filter_, y, x in np.ndindex(*result.shape):
        total = bias[0][filter_] if bias else 0.0
        for channel, i, j in np.ndindex(channels, *kernel):
            from_y, from_x = y * stride[0] + i - before[0], x * stride[1] + j - before[1]
            if 0 <= from_y < height and 0 <= from_x < width:
                total += weight[filter_, channel, i, j] * pixels[channel, from_y, from_x]
        expected[filter_, y, x] = total
    np.testing.assert_allclose(result, expected, atol=1e-5)  # sums of up to 50 products in float32


@pytest.mark.parametrize(
    ("kernel_size", "stride", "side", "before", "after"),
    [(3, 1, 28, 1, 1), (4, 1, 28, 1, 2), (2, 1, 28, 0, 1), (3, 2, 28, 0, 1), (3, 2, 7, 1, 1), (1, 3, 7, 0, 0)],
)
def test_same_padding_puts_the_odd_pixel_at_the_bottom_and_right(kernel_size, stride, side, before, after):
    assert same_padding(side, kernel_size, stride) == (before, after)
    layers = [Conv(filters=3, kernel_size=kernel_size, stride=stride, padding="same"), GlobalMaxPool(), Dense(units=2)]
    model = build_network(layers, (2, side, side), 2, generator=seeded())
    images = torch.rand(2, 2, side, side, generator=seeded(1))
    [conv] = [module for module in model if isinstance(module, nn.Conv2d)]
    padded = F.pad(images, (before, after, before, after))
    expected = F.conv2d(padded, conv.weight, conv.bias, stride=stride)
    assert expected.shape[2] == math.ceil(side / stride)
    result = model[:-3](images)  # without the pooling, its flattening and the dense layer
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(("kind", "pool"), [(MaxPool, F.max_pool2d), (AvgPool, F.avg_pool2d)])
@pytest.mark.parametrize(
    ("size", "stride", "sides"),
    [(2, None, (3, 4)), (3, None, (2, 3)), (3, 2, (3, 4)), (2, 1, (6, 8)), (1, 3, (3, 3)), ((2, 3), (1, 2), (6, 4))],
)
def test_pools_slide_by_their_size_or_by_their_stride(kind, pool, size, stride, sides):
    layers = [kind(size=size, stride=stride), Flatten(), Dense(units=2)]
    assert trace_layers(layers, (2, 7, 9), 2)[0].output_shape == (2, *sides)
    images = torch.rand(1, 2, 7, 9)
    result = build_network(layers, (2, 7, 9), 2)[0](images)
    assert result.shape == (1, 2, *sides)
    torch.testing.assert_close(result, pool(images, size, stride))


def test_padding_differs_by_axis_where_the_kernel_does():
    layers = [Conv(filters=1, kernel_size=(4, 1), padding="same"), GlobalMaxPool(), Dense(units=2)]
    model = build_network(layers, (1, 5, 6), 2, generator=seeded())
    images = torch.rand(1, 1, 5, 6)
    [conv] = [module for module in model if isinstance(module, nn.Conv2d)]
    expected = F.conv2d(F.pad(images, (0, 0, 1, 2)), conv.weight, conv.bias)
    torch.testing.assert_close(model[:-3](images), expected)


def test_a_network_computes_what_its_layers_say():
    layers = [
        Conv(filters=4, kernel_size=3, stride=2, activation="relu"),
        BatchNorm(eps=1e-3, activation="tanh"),
        AvgPool(size=2, stride=1),
        Activate(function="gelu"),
        MaxPool(size=(2, 1)),
        Flatten(),
        DropoutSpec(rate=0.5),
        Dense(units=5, activation="sigmoid", bias=False),
        BatchNorm(),
        Dense(units=3),
    ]
    model = build_network(layers, (2, 12, 10), 3, generator=seeded()).eval()
    images = torch.rand(4, 2, 12, 10, generator=seeded(1))
    conv, norm, dense, norm_again, last = (
        module for module in model if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.BatchNorm1d | nn.Linear)
    )
    for module in (norm, norm_again):
        module.running_mean.uniform_(-1, 1, generator=seeded(2))
        module.running_var.uniform_(0.5, 2, generator=seeded(3))
    hidden = F.relu(F.conv2d(images, conv.weight, conv.bias, stride=2))
    mean, variance = (x.view(1, -1, 1, 1) for x in (norm.running_mean, norm.running_var))
    hidden = torch.tanh((hidden - mean) / (variance + 1e-3).sqrt())
    hidden = F.max_pool2d(F.gelu(F.avg_pool2d(hidden, 2, 1)), (2, 1))
    hidden = torch.sigmoid(hidden.permute(0, 2, 3, 1).reshape(4, -1) @ dense.weight.T)
    hidden = (hidden - norm_again.running_mean) / (norm_again.running_var + 1e-5).sqrt()
    torch.testing.assert_close(model(images), hidden @ last.weight.T + last.bias)


def test_weights_are_channels_last_and_any_image_layout_gives_equal_logits():
    model = build_network([Conv(filters=4, kernel_size=3), Flatten(), Dense(units=2)], (3, 8, 8), 2, generator=seeded())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(model(images), model(images.contiguous(memory_format=torch.channels_last)))


def test_flattening_orders_by_rows_columns_channels_without_a_copy():
    images = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    flat = ChannelsLastFlatten()(images)
    assert flat.data_ptr() == images.data_ptr()
    for row, column, channel in ((0, 0, 1), (0, 1, 0), (3, 4, 2)):
        assert torch.equal(flat[:, (row * 5 + column) * 3 + channel], images[:, channel, row, column])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_before_relu_gives_the_same_values_and_gradients_bit_for_bit(dtype):
    layers = [Conv(filters=4, kernel_size=3, activation="relu"), MaxPool(size=2), Flatten(), Dense(units=2)]
    model = build_network(layers, (1, 13, 11), 2, generator=seeded()).to(dtype)
    assert [type(module) for module in model[:3]] == [nn.Conv2d, MaxPool2d, nn.ReLU]
    as_written = nn.Sequential(model[0], nn.ReLU(), nn.MaxPool2d(2), *model[3:])
    images = torch.randint(-2, 3, (50, 1, 13, 11), generator=seeded(1)).to(dtype)  # few values: many ties
    found = []
    for network in (model, as_written):
        inputs = images.clone().requires_grad_()
        outputs = network(inputs)
        gradients = torch.autograd.grad(outputs.square().sum(), [inputs, *network.parameters()])
        found.append([outputs, *gradients])
    assert all(torch.equal(ours, twin) for ours, twin in zip(*found, strict=True))


# --- impossible networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "fragments"),
    [
        ([Conv(filters=1, kernel_size=9), Flatten(), Dense(units=2)], ["layers[0]", "9×9 kernel", "8×8"]),
        ([Conv(filters=1, kernel_size=(1, 9)), Flatten(), Dense(units=2)], ["layers[0]", "1×9 kernel", "8×8"]),
        ([MaxPool(size=2), MaxPool(size=5), Flatten(), Dense(units=2)], ["layers[1]", "5×5 window", "4×4"]),
        ([AvgPool(size=9), Flatten(), Dense(units=2)], ["layers[0]", "9×9 window"]),
        ([Dense(units=2)], ["layers[0]", "flatten", "1×8×8"]),
        ([Flatten(), Conv(filters=1, kernel_size=3), Dense(units=2)], ["layers[1]", "conv", "64"]),
        ([Flatten(), MaxPool(), Dense(units=2)], ["layers[1]", "max-pool", "64"]),
        ([Flatten(), AvgPool(), Dense(units=2)], ["layers[1]", "avg-pool", "64"]),
        ([Flatten(), GlobalMaxPool(), Dense(units=2)], ["layers[1]", "global-max-pool"]),
        ([GlobalAvgPool(), GlobalAvgPool(), Dense(units=2)], ["layers[1]", "global-avg-pool"]),
        ([Flatten(), Dense(units=3)], ["layers", "3", "expected 2"]),
        ([Flatten()], ["layers", "64", "expected 2"]),
        ([Conv(filters=2, kernel_size=8)], ["layers", "2×1×1", "expected 2"]),
        (expand(KernelCnnSpec(kernel_size=3, widths=(4,) * 4), 2), ["layers[6]", "3×3 kernel", "2×2"]),
    ],
)
def test_an_impossible_network_is_refused_and_the_error_names_the_layer(layers, fragments):
    for refuse in (trace_layers, build_network):
        with pytest.raises(RecipeError) as caught:
            refuse(layers, (1, 8, 8), 2)
        for fragment in fragments:
            assert fragment in str(caught.value)


# --- initial weights -------------------------------------------------------------------------------------

# For a 3 by 3 convolution from 16 to 32 channels (fan-in 144, fan-out 288) and a dense layer from 288 to 50.
BOUNDS = {
    "torch": (1 / math.sqrt(144), 1 / math.sqrt(288)),
    "glorot-uniform": (math.sqrt(6 / (144 + 288)), math.sqrt(6 / (288 + 50))),
    "he-uniform": (math.sqrt(6 / 144), math.sqrt(6 / 288)),
    "he-normal": (math.sqrt(2 / 144), math.sqrt(2 / 288)),  # standard deviations
}
every_init = pytest.mark.parametrize("init", sorted(BOUNDS))


def initialized(init, seed=0):
    layers = [Conv(filters=32, kernel_size=3), BatchNorm(), Flatten(), Dense(units=50)]
    return build_network(layers, (16, 5, 5), 50, init=init, generator=seeded(seed))


def test_every_initialization_is_tested():
    assert set(BOUNDS) == set(get_args(Initialization))


@every_init
def test_initial_weights_depend_only_on_the_generator(init):
    before = torch.get_rng_state()
    first = initialized(init).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    again = initialized(init).state_dict()
    other = initialized(init, seed=1).state_dict()
    torch.set_rng_state(before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("0.weight", "3.weight"):
        assert not torch.equal(first[name], other[name])


@every_init
def test_initial_weights_have_the_spread_of_their_initialization(init):
    model = initialized(init)
    # With 4,608 and 14,400 draws, extremes are within 1 % of the bounds, and 5 % of a spread is 4 standard errors.
    for module, bound in zip((model[0], model[3]), BOUNDS[init], strict=True):
        weight = module.weight.detach()
        spread = bound if init == "he-normal" else bound / math.sqrt(3)
        assert float(weight.std()) == pytest.approx(spread, rel=0.05)
        assert abs(float(weight.mean())) < 4 * spread / math.sqrt(weight.numel())
        if init != "he-normal":
            assert 0.99 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)
        if init == "torch":
            assert 0.7 * bound < float(module.bias.detach().abs().max()) <= bound * (1 + 1e-6)
        else:
            assert not module.bias.any()
    assert (model[1].weight == 1).all()
    assert not model[1].bias.any()


def test_the_initialization_torch_is_pytorchs_default():
    torch.manual_seed(0)
    linear, conv = nn.Linear(288, 50), nn.Conv2d(16, 32, 3)
    model = initialized("torch")
    for ours, theirs in ((model[3], linear), (model[0], conv)):
        # Both are uniform with the same bound: compare the extremes of thousands of weights and dozens of biases.
        for name, rel in (("weight", 0.01), ("bias", 0.3)):
            largest = [float(getattr(module, name).detach().abs().max()) for module in (ours, theirs)]
            assert largest[0] == pytest.approx(largest[1], rel=rel)


# --- penalties -------------------------------------------------------------------------------------------


def test_l2_adds_the_gradient_of_the_weighted_sum_of_squared_kernels():
    layers = [
        Conv(filters=4, kernel_size=3, l2=0.5, activation="relu"),
        Conv(filters=4, kernel_size=3),
        Flatten(),
        BatchNorm(),
        Dense(units=5, l2=0.25, activation="relu"),
        Dense(units=2),
    ]
    model = build_network(layers, (1, 8, 8), 2, generator=seeded())
    first, second, third, last = (module for module in model if isinstance(module, nn.Conv2d | nn.Linear))
    images = torch.rand(3, 1, 8, 8, generator=seeded(1))

    model(images).square().sum().backward()
    alone = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    add_l2_gradients(model)
    added = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    penalty = 0.5 * first.weight.square().sum() + 0.25 * third.weight.square().sum()
    (model(images).square().sum() + penalty).backward()

    for name, parameter in model.named_parameters():
        torch.testing.assert_close(added[name], parameter.grad)
        changed = not torch.equal(alone[name], added[name])
        assert changed == any(parameter is module.weight for module in (first, third)), name
    assert second.weight.grad is not None
    assert last.weight.grad is not None


# --- dropout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    dropout = Dropout(rate)
    dropout.generator = seeded()
    inputs = torch.full((100, 1000), 3.0)
    outputs = dropout.train()(inputs)
    torch.testing.assert_close(outputs[outputs != 0], torch.full((int((outputs != 0).sum()),), 3 / (1 - rate)))
    share = float((outputs == 0).double().mean())
    error = 5 * math.sqrt(rate * (1 - rate) / inputs.numel())  # five standard errors
    assert share == pytest.approx(rate, abs=error)
    assert float(outputs.double().mean()) == pytest.approx(3, abs=3 * error / (1 - rate))


def test_dropout_at_a_rate_near_one_drops_nearly_all():
    dropout = Dropout(0.999999)
    dropout.generator = seeded()
    assert float((dropout.train()(torch.ones(1000, 1000)) == 0).double().mean()) > 0.9999


def test_random_bits_are_uniform_and_have_the_layout_of_the_input():
    like = torch.empty(7, 5, 30, 31).contiguous(memory_format=torch.channels_last)  # a count that 4 does not divide
    bits = draw_random_bits(like, seeded())
    assert (bits.shape, bits.dtype, bits.stride()) == (like.shape, torch.int16, like.stride())
    counts = torch.bincount((bits.flatten().int() + 2**15) // 2**11, minlength=32).double()  # 32 bins of equal width
    expected = like.numel() / 32
    assert float(((counts - expected) ** 2 / expected).sum()) < 61.1  # chi-squared, 31 degrees of freedom, p = 0.001
    assert not torch.equal(bits[0], bits[1])


def test_dropout_masks_the_gradient_like_the_input():
    dropout = Dropout(0.5)
    dropout.generator = seeded()
    inputs = torch.ones(100, requires_grad=True)
    outputs = dropout(inputs)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, outputs.detach())


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_is_off_in_evaluation_and_at_rate_zero(rate):
    inputs = torch.rand(4, 5)
    assert torch.equal(Dropout(rate).eval()(inputs), inputs)
    assert torch.equal(Dropout(0.0).train()(inputs), inputs)


def test_all_dropout_layers_draw_from_the_given_generator():
    layers = [DropoutSpec(rate=0.5), Flatten(), DropoutSpec(rate=0.3), Dense(units=2)]
    model = build_network(layers, (1, 4, 4), 2, generator=seeded()).train()
    images = torch.rand(8, 1, 4, 4)
    outputs = []
    for seed in (1, 1, 2):
        generator = seeded(seed)
        set_dropout_generator(model, generator)
        torch.manual_seed(len(outputs))  # the global random state must not matter
        outputs.append(model(images).detach())
        outputs.append(model(images).detach())
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[4])


# --- bfloat16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers",
    [
        [Conv(filters=4, kernel_size=2, activation="relu"), MaxPool(), BatchNorm(), Flatten()],
        [BatchNorm(), Conv(filters=4, kernel_size=(4, 3), padding="same", bias=False, l2=0.1), BatchNorm(), Flatten()],
        [Conv(filters=4, kernel_size=3), Activate(function="gelu"), GlobalAvgPool(), DropoutSpec(rate=0.25)],
        [AvgPool(), Flatten(), Dense(units=5, activation="sigmoid"), DropoutSpec(rate=0.5)],
    ],
)
def test_the_bf16_twin_trains_like_autocast_bit_for_bit(layers):
    images = torch.rand(5, 8, 1, 12, 12, generator=seeded(1))  # five steps of eight
    labels = torch.randint(0, 3, (5, 8), generator=seeded(2))

    def learn(*, with_twin):
        model = build_network([*layers, Dense(units=3)], (1, 12, 12), 3, generator=seeded()).train()
        set_dropout_generator(model, seeded(3))
        twin = Bf16Twin(model) if with_twin else None
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        found = []
        for inputs, truth in zip(images, labels, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not with_twin):
                logits = (twin or model)(inputs)
            F.cross_entropy(logits.float(), truth).backward()
            if twin is not None:
                twin.collect_gradients()
            add_l2_gradients(model)
            optimizer.step()
            found.append(logits.detach().float())
        assert not torch.equal(found[0], found[-1])
        return [*found, *model.state_dict().values()]

    for one, other in zip(learn(with_twin=True), learn(with_twin=False), strict=True):
        assert torch.equal(one, other)


def test_the_bf16_twin_with_fused_layers_trains_like_autocast(monkeypatch):
    """Compare the twin with exact sums where it differs from autocast, because autocast has two larger errors.

    - Rounding makes some pixels of a tile equal. The first of them gets the gradient in autocast, and the largest one
      before rounding in the twin. Here, 10 of 3,412 gradients go to another pixel.
    - On a CPU without AVX-512, PyTorch does not use oneDNN for bfloat16 but its own convolution (`Slow2d`). It adds the
      gradients of the weights image by image, and rounds the sum to bfloat16 after each image, so that the error grows
      with the batch.

    Together, the two errors are up to 6 % of the largest gradient of a weight; the twin's are below 0.4 %.
    """
    layers = [Conv(filters=4, kernel_size=3, activation="relu", l2=0.1), MaxPool(), Flatten(), Dense(units=3)]
    model = build_network(layers, (1, 12, 12), 3, generator=seeded()).train()
    images, labels = torch.rand(64, 1, 12, 12, generator=seeded(1)), torch.randint(0, 3, (64,), generator=seeded(2))

    def learn(network, twin=None):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=twin is None):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        if twin is not None:
            twin.collect_gradients()
        add_l2_gradients(model)
        return [logits.detach().float(), *(weight.grad.clone() for weight in model.parameters())]

    expected = learn(model)
    twin = Bf16Twin(model)
    exact = _learn_with_exact_sums(model, images, labels)
    for ours, theirs, truth in zip(learn(twin, twin), expected, exact, strict=True):
        is_accurate = (ours - truth).abs() <= 2**-8 * (truth.abs() + truth.abs().max())  # 2^-8: rounding to bfloat16
        assert (is_accurate | (ours == theirs)).all()  # equal everywhere if the kernels are not available
    monkeypatch.setattr(loading, "load_kernels", lambda *_: None)
    for ours, theirs in zip(learn(twin, twin), expected, strict=True):
        assert torch.equal(ours, theirs)


def _learn_with_exact_sums(model, images, labels):
    """Return logits and gradients. Sums are in float64; the tensors that the twin rounds to bfloat16 are rounded.

    These are the weights, images, maxima and logits, and the gradients of maxima and logits.
    """

    def rounded(tensor):
        return tensor.bfloat16().double()  # `backward` converts in the same way, so it rounds the gradient

    exact = copy.deepcopy(model).bfloat16().double()
    maxima = F.relu(F.max_pool2d(exact[0](rounded(images)), 2))
    logits = rounded(exact[-1](rounded(maxima).permute(0, 2, 3, 1).flatten(1)))
    F.cross_entropy(logits, labels).backward()
    exact.load_state_dict(model.state_dict())  # the L2 penalty uses the weights before rounding
    add_l2_gradients(exact)
    return [logits.detach(), *(weight.grad for weight in exact.parameters())]


# --- inference -------------------------------------------------------------------------------------------


INFERRED = {
    "conv, norm": [Conv(filters=3, kernel_size=3, bias=False), BatchNorm(), Flatten(), Dense(units=2)],
    "conv with bias, norm, pooled": [
        Conv(filters=3, kernel_size=3),
        BatchNorm(activation="relu"),
        MaxPool(size=2),
        Flatten(),
        Dense(units=2),
    ],
    "norm behind dropout": [
        Conv(filters=3, kernel_size=3),
        DropoutSpec(rate=0.5),
        BatchNorm(),
        Flatten(),
        Dense(units=2),
    ],
    "norm behind an activation": [
        Conv(filters=3, kernel_size=4, padding="same", activation="relu"),
        BatchNorm(),
        GlobalAvgPool(),
        Dense(units=2),
    ],
    "norm first": [BatchNorm(), Conv(filters=3, kernel_size=3), Flatten(), Dense(units=2)],
    "dense, norm": [Flatten(), Dense(units=5), BatchNorm(activation="relu"), Dense(units=2), BatchNorm()],
    "no dense layer": [
        Conv(filters=4, kernel_size=3, activation="relu"),
        Conv(filters=2, kernel_size=2),
        GlobalAvgPool(),
    ],
}


def trained_statistics(model):
    """Give batch norm the parameters and statistics of a trained network."""
    for layer in model:
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                torch.nn.init.normal_(tensor, generator=seeded())
            layer.running_var.uniform_(0.5, 2, generator=seeded())
    return model


@pytest.mark.parametrize("layers", INFERRED.values(), ids=INFERRED)
@pytest.mark.parametrize("training", [True, False])
def test_inference_network_gives_the_networks_logits(layers, training):
    model = trained_statistics(build_network(layers, (1, 6, 6), 2, generator=seeded())).train(training)
    set_dropout_generator(model, seeded())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randint(0, 256, (10, 1, 6, 6), generator=seeded(), dtype=torch.uint8)

    def answer(**options):
        return predict_logits(InferenceNetwork(model, **options), images.split(4), lambda pixels: pixels.float() / 255)

    logits, halves = answer(), answer(bf16=True)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((10, 2), torch.float32, False)
    assert halves.dtype == torch.float32
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    expected = model.eval()(images.float() / 255).detach()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(halves, expected, atol=0.05, rtol=0.05)  # bfloat16 keeps 8 bits


def test_batch_norm_is_folded_into_weights():
    model = build_network(INFERRED["conv with bias, norm, pooled"], (1, 6, 6), 2, generator=seeded())
    kinds = [type(layer) for layer in InferenceNetwork(model).modules()]
    assert torch.nn.BatchNorm2d not in kinds


def test_dense_layers_stay_in_fp32():
    model = build_network(INFERRED["conv with bias, norm, pooled"], (1, 6, 6), 2, generator=seeded())
    dtypes = {
        type(layer): layer.weight.dtype
        for layer in InferenceNetwork(model, bf16=True).modules()
        if hasattr(layer, "weight")
    }
    assert dtypes == {torch.nn.Conv2d: torch.bfloat16, torch.nn.Linear: torch.float32}


# Where each view takes pixel (row, column) from: (rows down, columns right, mirrored).
VIEWS = {
    "none": [(0, 0, False)],
    "flip": [(0, 0, False), (0, 0, True)],
    "shift": [(0, 0, False), (-1, -1, False), (1, 1, False), (-1, 1, False), (1, -1, False)],
}
VIEWS["flip-shift"] = [(*view[:2], mirrored) for view in VIEWS["shift"] for mirrored in (False, True)]


def slow_view(image, down, right, mirrored):
    """Shift an image pixel by pixel, repeating its edge, and then mirror the result."""
    _, height, width = image.shape
    seen = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            from_row = min(max(row + down, 0), height - 1)
            from_column = min(max(column + right, 0), width - 1)
            seen[:, row, width - 1 - column if mirrored else column] = image[:, from_row, from_column]
    return seen


def small_network(channels=1):
    layers = [Conv(filters=3, kernel_size=3, activation="relu"), Flatten(), Dense(units=4)]
    return build_network(layers, (channels, 6, 5), 4, generator=seeded())


def draw_images(channels=1):
    return torch.randint(0, 256, (7, channels, 6, 5), generator=seeded(), dtype=torch.uint8)


def test_all_choices_of_views_are_tested():
    assert set(VIEWS) == set(get_args(Views))


@pytest.mark.parametrize("views", sorted(VIEWS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [2, 7])
def test_views_are_averaged_like_the_slow_reference(views, channels, size):
    model, images = small_network(channels), draw_images(channels)
    logits = predict_logits(model, images.split(size), lambda pixels: pixels.float() / 255, views=views)
    for image, found in zip(images, logits, strict=True):
        probabilities = [model(slow_view(image, *view)[None].float() / 255)[0].softmax(dim=0) for view in VIEWS[views]]
        mean = torch.stack(probabilities).mean(dim=0)
        torch.testing.assert_close(found.softmax(dim=0), mean.detach())
        if views != "none":
            assert float(found.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_views_none_changes_nothing():
    model, images = small_network(), draw_images()
    logits = predict_logits(model, [images], lambda pixels: pixels.float() / 255, views="none")
    assert torch.equal(logits, predict_logits(model, [images], lambda pixels: pixels.float() / 255))
    assert torch.equal(logits, model(images.float() / 255).detach())


@pytest.mark.parametrize("views", ["flip", "flip-shift"])
def test_mirrored_images_get_equal_logits(views):
    model, images = small_network(), draw_images()
    seen, mirrored = (
        predict_logits(model, [pixels], lambda pixels: pixels.float() / 255, views=views)
        for pixels in (images, images.flip(3))
    )
    torch.testing.assert_close(seen, mirrored)


@pytest.mark.parametrize("views", sorted(VIEWS))
def test_views_do_not_change_their_input(views):
    images = draw_images()
    before, seen = images.clone(), []
    predict_logits(small_network(), [images], lambda pixels: seen.append(pixels) or pixels.float(), views=views)
    assert torch.equal(images, before)
    assert {pixels.dtype for pixels in seen} == {torch.uint8}
    assert len(seen) == len(VIEWS[views])
