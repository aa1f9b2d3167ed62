"""Every network family at random sizes: seeds, costs, precision, folding and exact resumption."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.data import Splits
from fmcli.data.image_set import ImageSet
from fmcli.events import StepFinished, StopRequest
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import build_model
from fmcli.networks.dropout import Dropout, StochasticDepth, set_dropout_generator
from fmcli.networks.inference import InferenceNetwork
from fmcli.networks.tracing import trace_network
from fmcli.recipe import resolve_recipe
from fmcli.recipe.families import FAMILIES
from fmcli.recipe.families.kernel_resnet import KernelResnetSpec
from fmcli.recipe.layers import Conv, Initialization, MaxPool, Residual, SqueezeExcite
from fmcli.recipe.tracing import count_parameters, walk_traces
from fmcli.training import train_member
from tests.helpers import StopAt

# --- tables of every family ------------------------------------------------------------------------------

INITS = st.sampled_from(get_args(Initialization))
KERNELS = st.integers(1, 4)
WIDTHS = st.integers(3, 6)
SKIPPED = st.sampled_from([0.3, 0.0])  # hypothesis tries the first value more often


def table(layer, **fields):
    return st.fixed_dictionaries({"type": st.just(layer), **fields})


@st.composite
def kernel_networks(draw, family, **keys):
    widths = draw(st.lists(WIDTHS, min_size=1, max_size=3))
    kernel_size = draw(KERNELS | st.lists(KERNELS, min_size=len(widths), max_size=len(widths)))
    common = {"family": family, "widths": widths, "kernel_size": kernel_size, "init": draw(INITS)}
    return common | draw(st.fixed_dictionaries(keys))


NORMS = table("batch-norm", activation=st.sampled_from(["relu", "gelu"]))
CONVS = table("conv", filters=WIDTHS, kernel_size=KERNELS, stride=st.integers(1, 2), padding=st.just("same"))
LEAVES = st.one_of(
    st.tuples(CONVS, NORMS),
    st.tuples(table("conv", filters=st.just(4), kernel_size=KERNELS, padding=st.just("same"), bias=st.booleans())),
    st.tuples(table("squeeze-excite", reduction=st.integers(1, 3))),
    st.tuples(table("dropout", rate=st.just(0.25))),
    st.tuples(CONVS, NORMS, table("max-pool", size=st.just(1))),
).map(list)


def residuals(inner):
    body = st.lists(inner, min_size=1, max_size=2).map(lambda parts: [*itertools.chain(*parts)])
    fields = {"shortcut": st.just("auto"), "stochastic_depth": SKIPPED, "activation": st.sampled_from(["relu", "tanh"])}
    return table("residual", body=body, **fields).map(lambda layer: [layer])


NESTED = st.lists(st.recursive(LEAVES, residuals, max_leaves=4) | residuals(LEAVES), min_size=1, max_size=3)
DENSE = [{"type": "dense", "units": 5}, {"type": "batch-norm"}, {"type": "dense", "units": 3}]
ENDINGS = st.sampled_from(["flatten", "global-avg-pool", "global-max-pool"]).map(
    lambda layer: [{"type": layer}, *DENSE]
)
TABLES = {
    "kernel-cnn": kernel_networks("kernel-cnn", form=st.just("pooled"), depth=st.integers(1, 2)),
    "kernel-resnet": kernel_networks(
        "kernel-resnet", depth=st.integers(1, 2), squeeze_excite=st.booleans(), stochastic_depth=SKIPPED
    ),
    "sequential": st.builds(
        lambda init, layers, ending: {
            "family": "sequential",
            "init": init,
            "layers": [*itertools.chain(*layers), *ending],
        },
        INITS,
        NESTED,
        ENDINGS,
    ),
    "torchvision": st.fixed_dictionaries(
        {"family": st.just("torchvision"), "name": st.just("shufflenet_v2_x0_5"), "init": INITS}
    ),
}
"""A strategy for the `[model]` tables of each family. Networks must take images of any shape in SHAPES."""

SHAPES = st.tuples(st.integers(1, 2), st.integers(5, 9), st.integers(5, 9))
N_CLASSES = 3
every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_is_tested():
    assert set(TABLES) == set(FAMILIES)
    assert {name: spec.model_fields["family"].default for name, spec in FAMILIES.items()} == {n: n for n in FAMILIES}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trace(model, shape):
    return trace_network(FAMILIES[model["family"]].model_validate(model), shape, N_CLASSES)


def build(model, shape, seed=0):
    network = build_model(trace(model, shape), init=model.get("init", "torch"), generator=seeded(seed))
    set_dropout_generator(network, seeded(seed + 1))
    return network


def products_of(network):
    """Return all convolutions and dense layers by name."""
    return {name: one for name, one in network.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}


def check(family, examples=8):
    """Return a decorator that runs a test with random tables and shapes of a family, the same ones in each run."""

    def decorate(test):
        drawn = given(TABLES[family], SHAPES)(test)
        n_examples = min(examples, 2) if family == "torchvision" else examples  # its networks are large
        return settings(max_examples=n_examples, derandomize=True)(drawn)

    return decorate


# --- properties of every family --------------------------------------------------------------------------


@every_family
def test_equal_seeds_give_equal_weights_and_different_seeds_different_kernels(family):
    @check(family)
    def run(model, shape):
        networks = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(networks))  # the global random state must not matter
            networks.append(build(model, shape, seed))
        first, again, other = (network.state_dict() for network in networks)
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        for name in products_of(networks[0]):
            assert not torch.equal(first[f"{name}.weight"], other[f"{name}.weight"]), name

    run()


@every_family
def test_traces_have_the_shapes_parameters_and_multiply_adds_of_the_modules(family):
    @check(family)
    def run(model, shape):
        traces = trace(model, shape)
        assert count_parameters(traces) == count_weights(build_model(traces))
        for path, one in walk_traces(traces):
            layer = build_model([one]).to("meta").eval()
            outputs, multiply_adds = run_and_count(layer, one.input_shape)
            assert outputs == one.output_shape, path
            assert (count_weights(layer), multiply_adds) == (one.parameters, one.multiply_adds), path

    run()


def count_weights(network):
    return sum(weight.numel() for weight in network.parameters())


def run_and_count(network, input_shape):
    """Return the output shape of a network and the multiply-adds of its convolutions and dense layers per image."""
    counts = []
    for product in products_of(network).values():
        product.register_forward_hook(lambda one, _, outputs: counts.append(one.weight.numel() * outputs[0, 0].numel()))
    outputs = network(torch.empty(2, *input_shape, device="meta"))
    return tuple(outputs.shape[1:]), sum(counts)


@every_family
def test_every_kernel_receives_gradients_in_bfloat16(family):
    @check(family)
    def run(model, shape):
        network = build(model, shape).train()
        twin = Bf16Twin(network)
        logits = twin(torch.rand(16, *shape, generator=seeded(2)))
        assert logits.dtype == torch.bfloat16
        F.cross_entropy(logits.float(), torch.arange(16) % N_CLASSES).backward()
        twin.collect_gradients()
        for name, product in products_of(network).items():
            gradient = product.weight.grad
            assert product.weight.dtype == torch.float32
            assert gradient is not None, name
            assert torch.equal(gradient, gradient.bfloat16().float()), name

    run()


@every_family
def test_the_folded_network_gives_the_networks_logits(family):
    @check(family)
    def run(model, shape):
        network = with_trained_statistics(build(model, shape)).eval()
        images = torch.rand(16, *shape, generator=seeded(2))
        folded = InferenceNetwork(network)
        with torch.inference_mode():
            expected, logits = network(images), folded(images)
        assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max().clamp(min=1)
        for sequence in (module for module in folded.modules() if isinstance(module, nn.Sequential)):
            for before, after in itertools.pairwise(sequence):
                is_folded = isinstance(before, nn.Conv2d | nn.Linear)
                assert not (is_folded and isinstance(after, nn.BatchNorm1d | nn.BatchNorm2d))
        assert not any(isinstance(module, Dropout) for module in folded.modules())

    run()


def with_trained_statistics(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=seeded())
            nn.init.normal_(module.bias, generator=seeded())
            module.running_mean.normal_(generator=seeded())
            module.running_var.uniform_(0.5, 2, generator=seeded())
    return network


@every_family
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(family, precision, tmp_path_factory):
    @check(family, examples=2)
    def run(model, shape):
        recipe = resolve_recipe(
            {
                "data": {"source": "idx:drawn"},
                "model": model,
                "trainer": {"epochs": 2, "batch_size": 16, "precision": precision},
                "optimizer": {"name": "muon"},
            },
            name="drawn",
        )
        images = draw_images(shape)
        folder = tmp_path_factory.mktemp("runs")
        options = {"device": torch.device("cpu")}
        train_member(recipe, "m1", images, folder / "whole", **options)
        stop = StopAt(StepFinished, 3, StopRequest)
        with pytest.raises(StopRequest):
            train_member(recipe, "m1", images, folder / "stopped", reporter=stop, **options)
        train_member(recipe, "m1", images, folder / "stopped", resume=True, **options)
        whole, resumed = (load_file(folder / name / MODEL_FILE) for name in ("whole", "stopped"))
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

    run()


def draw_images(shape):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (32, *shape)).astype(np.uint8)
    images = ImageSet(pixels, np.arange(32) % N_CLASSES, tuple("abc"))
    return Splits(images, None, images)


def test_a_training_step_differs_if_another_generator_skips_blocks():
    """Without this, the tests of resumption could pass with networks that draw no random numbers."""
    model = {"family": "kernel-resnet", "kernel_size": 3, "widths": [4], "depth": 2, "stochastic_depth": 0.5}
    network = build(model, (1, 8, 8)).train()
    assert sum(isinstance(module, StochasticDepth) for module in network.modules()) == 2
    images = torch.rand(16, 1, 8, 8, generator=seeded())
    outputs = []
    for seed in (1, 1, 2):
        set_dropout_generator(network, seeded(seed))
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# --- kernel-resnet ---------------------------------------------------------------------------------------


def expand_resnet(**keys):
    return KernelResnetSpec(**{"kernel_size": 3, "widths": (4, 6, 8)} | keys).expand((1, 28, 28), 10)


def blocks_of(layers):
    return [layer for layer in layers if isinstance(layer, Residual)]


def test_a_residual_network_has_stages_of_blocks_after_a_pooled_convolution():
    layers = expand_resnet(kernel_size=(5, 3, 1), depth=(1, 2, 1))
    kinds = [layer.type for layer in layers]
    assert kinds == [
        *("conv", "max-pool", "batch-norm", "residual"),
        *("max-pool", "residual", "residual"),
        *("max-pool", "residual"),
        *("global-avg-pool", "dense"),
    ]
    assert (layers[0].filters, layers[0].kernel_size) == (4, 5)
    convs = [
        [(one.filters, one.kernel_size) for one in block.body if one.type == "conv"] for block in blocks_of(layers)
    ]
    assert convs == [[(4, 5)] * 2, [(6, 3)] * 2, [(6, 3)] * 2, [(8, 1)] * 2]
    assert not any(isinstance(layer, SqueezeExcite) for block in blocks_of(layers) for layer in block.body)
    assert KernelResnetSpec(kernel_size=(5, 3, 3), widths=(4, 6, 8)).kernel_group == "3+5"


def test_the_probability_of_skipping_a_block_grows_linearly():
    blocks = blocks_of(expand_resnet(depth=2, stochastic_depth=0.3, squeeze_excite=True))
    assert [block.stochastic_depth for block in blocks] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    assert all(isinstance(block.body[-1], SqueezeExcite) for block in blocks)
    assert [block.stochastic_depth for block in blocks_of(expand_resnet())] == [0, 0, 0]


@pytest.mark.parametrize(("shape", "poolings"), [((1, 1, 1), 0), ((3, 2, 5), 1), ((1, 28, 28), 4), ((2, 5, 9), 2)])
def test_stages_halve_the_image_while_it_has_two_pixels_per_side(shape, poolings):
    model = KernelResnetSpec(kernel_size=3, widths=(4,) * 6)
    layers = model.expand(shape, 2)
    assert sum(isinstance(layer, MaxPool) for layer in layers) == poolings
    network = build_model(trace_network(model, shape, 2), generator=seeded()).eval()
    assert network(torch.rand(3, *shape)).shape == (3, 2)


@pytest.mark.parametrize("key", ["kernel_size", "depth"])
def test_a_list_has_one_value_per_width(key):
    with pytest.raises(ValueError, match=f"{key} must be one number, or a list of 3, one per width; got a list of 2"):
        expand_resnet(**{key: (3, 5)})


def test_most_multiply_adds_are_in_the_blocks():
    traces = trace_network(KernelResnetSpec(kernel_size=3, widths=(32, 64)), (1, 28, 28), 10)
    first, *rest = [trace for trace in traces if isinstance(trace.layer, Conv | Residual)]
    assert first.multiply_adds == 28 * 28 * 9 * 32
    assert rest[0].multiply_adds == 2 * 14 * 14 * 9 * 32 * 32
    assert rest[1].multiply_adds == 7 * 7 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64)
