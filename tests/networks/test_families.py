"""Every network family at random sizes: seeds, shapes, precision, folding and exact resumption."""

import pytest
import torch

from fmcli.networks.build import build_model
from fmcli.networks.tracing import trace_network
from fmcli.recipe.families.kernel_resnet import KernelResnetSpec
from fmcli.recipe.layers import Conv, MaxPool, Residual, SqueezeExcite

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
    network = build_model(trace_network(model, shape, 2), generator=torch.Generator().manual_seed(0)).eval()
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
