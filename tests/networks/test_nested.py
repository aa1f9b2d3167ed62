"""Residual layers, squeeze-excite, stochastic depth and groups."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmcli.errors import RecipeError
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.blocks import Residual, SqueezeExcite
from fmcli.networks.build import add_l2_gradients
from fmcli.networks.dropout import StochasticDepth, set_dropout_generator
from fmcli.networks.inference import InferenceNetwork
from fmcli.recipe.families.sequential import SequentialSpec
from fmcli.recipe.layers import (
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    MaxPool,
)
from fmcli.recipe.layers import Residual as ResidualSpec
from fmcli.recipe.layers import SqueezeExcite as SqueezeExciteSpec
from fmcli.recipe.tracing import trace_layers, walk_traces
from tests.networks.helpers import build_network

ENDING = [GlobalAvgPool(), Dense(units=2)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def conv(filters=4, kernel_size=3, **options):
    return Conv(filters=filters, kernel_size=kernel_size, padding="same", **options)


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_a_residual_layer_adds_its_input_or_a_projection_of_it(stride):
    block = ResidualSpec(body=(conv(6, stride=stride, activation="tanh"), BatchNorm()), shortcut="auto")
    model = build_network([block.model_copy(update={"activation": "relu"}), *ENDING], (3, 7, 7), 2, generator=seeded())
    residual = model[0]
    images = torch.rand(4, 3, 7, 7, generator=seeded(1))
    convolve, _, norm = residual.body
    project, project_norm = residual.shortcut
    assert project.weight.shape == (6, 3, 1, 1)
    body = norm(torch.tanh(F.conv2d(images, convolve.weight, convolve.bias, stride=stride, padding=1)))
    expected = body + project_norm(F.conv2d(images, project.weight, stride=stride))
    assert (expected < 0).any()
    torch.testing.assert_close(model[:2](images), F.relu(expected))


def test_a_residual_layer_that_keeps_the_shape_adds_its_input_even_with_an_automatic_shortcut():
    for shortcut in ("identity", "auto"):
        block = ResidualSpec(body=(conv(3),), shortcut=shortcut)
        model = build_network([block, *ENDING], (3, 7, 5), 2, generator=seeded())
        images = torch.rand(4, 3, 7, 5, generator=seeded(1))
        torch.testing.assert_close(model[0](images), images + model[0].body(images))


def test_flat_inputs_have_residual_layers_too():
    block = ResidualSpec(body=(Dense(units=5, activation="relu"),), shortcut="auto")
    model = build_network([Flatten(), block, Dense(units=2)], (1, 2, 2), 2, generator=seeded())
    inputs = torch.rand(6, 4, generator=seeded(1))
    dense, _ = model[1].body
    project, norm = model[1].shortcut
    expected = F.relu(dense(inputs)) + norm(inputs @ project.weight.T)
    torch.testing.assert_close(model[1](inputs), expected)


def test_squeeze_excite_scales_channels_by_what_their_means_say():
    model = build_network([SqueezeExciteSpec(reduction=3), *ENDING], (7, 5, 4), 2, generator=seeded())
    images = torch.rand(3, 7, 5, 4, generator=seeded(1))
    first, second = (module for module in model[0].modules() if isinstance(module, nn.Linear))
    assert first.weight.shape == (2, 7)
    scale = torch.sigmoid(second(F.relu(first(images.mean(dim=(2, 3))))))
    torch.testing.assert_close(model[0](images), images * scale[:, :, None, None])


def test_groups_of_filters_read_their_own_channels():
    model = build_network([conv(6, groups=2), *ENDING], (4, 5, 5), 2, generator=seeded())
    assert model[0].weight.shape == (6, 2, 3, 3)
    images = torch.rand(3, 4, 5, 5, generator=seeded(1))
    changed = images.clone()
    changed[:, :2] += 1
    before, after = model[0](images), model[0](changed)
    assert not torch.equal(before[:, :3], after[:, :3])
    torch.testing.assert_close(before[:, 3:], after[:, 3:])


def test_stochastic_depth_skips_whole_images_and_keeps_the_mean():
    depth = StochasticDepth(0.25)
    set_dropout_generator(depth, seeded())
    outputs = depth.train()(torch.full((10_000, 2, 3, 1), 3.0))
    kept = outputs[:, 0, 0, 0] != 0
    assert torch.equal(outputs, (kept[:, None, None, None] * 4.0).expand_as(outputs))
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)  # five standard errors
    assert torch.equal(depth.eval()(outputs), outputs)
    flat = depth.train()(torch.ones(100, 2))
    assert torch.equal(flat[:, 0], flat[:, 1])


# --- every function that walks through modules -----------------------------------------------------------

NESTED = [
    conv(4, l2=0.5, activation="relu"),
    MaxPool(),
    ResidualSpec(
        body=(
            conv(8, stride=2, bias=False, l2=0.25),
            BatchNorm(activation="relu"),
            MaxPool(),
            ResidualSpec(body=(conv(8, activation="relu"), MaxPool(size=1), Dropout(rate=0.5)), stochastic_depth=0.5),
            conv(8, groups=8),
            SqueezeExciteSpec(),
        ),
        shortcut="auto",
        activation="relu",
    ),
    *ENDING,
]


def build_nested(seed=0, **options):
    model = build_network(NESTED, (1, 14, 14), 2, generator=seeded(seed), **options)
    set_dropout_generator(model, seeded(5))
    return model


def test_nested_layers_have_paths_and_their_costs_count():
    traces = trace_layers(NESTED, (1, 14, 14), 2)
    paths = [path for path, _ in walk_traces(traces)]
    assert paths[2:6] == ["2", "2.body.0", "2.body.1", "2.body.2"]
    assert {"2.body.3.body.2", "2.body.5", "2.shortcut.1"} < set(paths)
    by_path = dict(walk_traces(traces))
    # 4 channels of 7 by 7 pixels become 8 channels of 4 by 4 pixels, which are pooled to 2 by 2.
    assert by_path["2.body.0"].multiply_adds == 4 * 9 * 8 * 16
    assert by_path["2.body.3"].parameters == 8 * (9 * 8 + 1)
    assert by_path["2.body.4"].multiply_adds == 8 * 9 * 4
    assert (by_path["2.body.5"].parameters, by_path["2.body.5"].multiply_adds) == (2 * 2 * 8 + 2 + 8, 2 * 2 * 8)
    assert by_path["2.shortcut.0"].layer.stride == 4
    inner = [trace for path, trace in by_path.items() if path.startswith("2.") and path.count(".") == 2]
    assert by_path["2"].parameters == sum(trace.parameters for trace in inner)
    assert by_path["2"].multiply_adds == sum(trace.multiply_adds for trace in inner)
    assert sum(trace.parameters for trace in traces) == sum(weight.numel() for weight in build_nested().parameters())


def test_pooling_moves_before_relu_in_inner_layers_too():
    inner = build_nested()[3].body[4]
    assert [type(module).__name__ for module in inner.body] == ["Conv2d", "MaxPool2d", "ReLU", "Dropout"]


def test_l2_penalties_apply_to_inner_layers():
    model = build_nested()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    add_l2_gradients(model)
    penalized = {"0.weight": 1.0, "3.body.0.weight": 0.5}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, penalized.get(name, 0.0) * before[name])


def test_the_bf16_twin_of_nested_layers_trains_like_autocast_bit_for_bit():
    layers = NESTED[2:]  # the twin computes the first layers of NESTED with its own kernel
    images, labels = torch.rand(3, 8, 4, 6, 6, generator=seeded(1)), torch.randint(0, 2, (3, 8), generator=seeded(2))

    def learn(*, with_twin):
        model = build_network([conv(4, bias=False), *layers], (4, 6, 6), 2, generator=seeded()).train()
        set_dropout_generator(model, seeded(3))
        twin = Bf16Twin(model) if with_twin else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for inputs, truth in zip(images, labels, strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not with_twin):
                logits = (twin or model)(inputs)
            F.cross_entropy(logits.float(), truth).backward()
            if twin is not None:
                twin.collect_gradients()
            optimizer.step()
            found.append(logits.detach().float())
        return [*found, *model.state_dict().values()]

    for one, other in zip(learn(with_twin=True), learn(with_twin=False), strict=True):
        assert torch.equal(one, other)


def test_inner_batch_norm_is_folded_and_the_network_is_unchanged():
    model = build_nested()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = InferenceNetwork(model, bf16=True)
    kinds = [type(module) for module in network.modules()]
    assert nn.BatchNorm2d not in kinds
    assert {Residual, SqueezeExcite} < set(kinds)
    dtypes = {module.weight.dtype for module in network._body.modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert (dtypes, network._head[-1].weight.dtype) == ({torch.bfloat16}, torch.float32)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- impossible ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (ResidualSpec(body=(conv(6),)), "layers[0]: the body turns 4×8×8 into 6×8×8, but the shapes must be equal"),
        (ResidualSpec(body=(MaxPool(),)), "layers[0]: the body turns 4×8×8 into 4×4×4, but the shapes must be equal"),
        (
            ResidualSpec(body=(conv(6), Conv(filters=4, kernel_size=2)), shortcut="auto"),
            "layers[0]: the body turns 4×8×8 into 4×7×7, which no stride of a 1×1 convolution does",
        ),
        (ResidualSpec(body=(Flatten(),), shortcut="auto"), "layers[0]: the body turns 4×8×8 into 256, but a shortcut"),
        (
            ResidualSpec(body=(conv(4), Conv(filters=4, kernel_size=9)), shortcut="auto"),
            "layers[0].body[1]: a 9×9 kernel is larger than the 8×8 feature map",
        ),
        (
            ResidualSpec(body=(conv(4), ResidualSpec(body=(AvgPool(size=9),)))),
            "layers[0].body[1].body[0]: a 9×9 window is larger than the 8×8 feature map",
        ),
        (conv(4, groups=3), "layers[0]: got groups = 3; expected a divisor of 4 channels and 4 filters"),
        (
            ResidualSpec(body=(conv(6, groups=4),)),
            "layers[0].body[0]: got groups = 4; expected a divisor of 4 channels and 6 filters",
        ),
    ],
)
def test_an_impossible_block_is_refused_with_the_path_of_the_layer(block, problem):
    with pytest.raises(RecipeError) as caught:
        trace_layers([block, *ENDING], (4, 8, 8), 2)
    [found] = caught.value.problems
    assert found.startswith(problem)


def test_squeeze_excite_needs_an_image():
    with pytest.raises(RecipeError, match=r"layers\[1\]: squeeze-excite needs an image, got 256"):
        trace_layers([Flatten(), SqueezeExciteSpec(), Dense(units=2)], (4, 8, 8), 2)


def test_layers_nest_to_a_limit():
    def nest(levels):
        layers = [{"type": "flatten"}]
        for _ in range(levels - 1):
            layers = [{"type": "residual", "body": layers}]
        return SequentialSpec.model_validate({"layers": layers})

    assert nest(8)
    with pytest.raises(ValueError, match="got 9 levels of layers inside each other; expected at most 8"):
        nest(9)
    wide = {"type": "residual", "body": [{"type": "flatten"}] * 500}
    with pytest.raises(ValueError, match="got 1002 layers; expected at most 1000"):
        SequentialSpec.model_validate({"layers": [wide, wide]})
