"""Strided convolutions: weight gradients compared with PyTorch, and the fallbacks."""

import copy
import os
import sys

import pytest
import torch
from torch import nn

from fmcli.networks.cpu import loading, strided
from fmcli.networks.cpu.strided import StridedConv2d
from fmcli.recipe.layers import Conv, Dense, Flatten
from tests.networks.helpers import build_network


@pytest.fixture
def kernels(monkeypatch):
    """Return the kernels, skip without them, and make PyTorch's own convolution fail."""
    found = loading._compile_kernels(strided._StridedConv, torch.bfloat16)
    if found is None:
        say = pytest.fail if os.environ.get("CI") and sys.platform == "linux" else pytest.skip
        say("numba finds no OpenMP here, so PyTorch computes")
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("PyTorch's was used"))
    return found


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole(*shape, seed=0):
    """Return small channels-last integers, whose sums of products are exact in float32."""
    draws = torch.randint(-2, 3, shape, generator=seeded(seed)).to(torch.bfloat16)
    return draws.contiguous(memory_format=torch.channels_last) if draws.ndim == 4 else draws


def strided_conv(*sizes, **options):
    conv = StridedConv2d(*sizes, **options)
    for seed, weights in enumerate(conv.parameters()):
        weights.data = whole(*weights.shape, seed=seed)
    return conv


def learn(conv, images, forward):
    """Return the outputs in float32 and the gradients of images and weights."""
    conv.zero_grad()
    images = images.clone().requires_grad_()
    outputs = forward(conv, images)
    outputs.backward(whole(*outputs.shape, seed=9).to(outputs.dtype))
    return [outputs.detach().float(), images.grad.float(), *(weights.grad.float() for weights in conv.parameters())]


def slow_twin(conv, images):
    """Reference implementation: the results of PyTorch in float32, rounded to bfloat16."""

    def forward(conv, images):
        return nn.functional.conv2d(images, conv.weight, conv.bias, conv.stride, conv.padding)

    found = learn(copy.deepcopy(conv).float(), images.float(), forward)
    return [tensor.to(torch.bfloat16).float() for tensor in found]


@pytest.mark.parametrize("shape", [(3, 8, 13, 13), (2, 3, 7, 12), (5, 33, 6, 5), (1, 2, 3, 3)])
@pytest.mark.parametrize("kernel", [3, (2, 3), 1])
@pytest.mark.parametrize("stride", [2, 3, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_float32(kernels, shape, kernel, stride, padding, bias):
    conv = strided_conv(shape[1], 7, kernel, stride=stride, padding=padding, bias=bias)
    images = whole(*shape, seed=5)
    for ours, theirs in zip(learn(conv, images, StridedConv2d.__call__), slow_twin(conv, images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_gradients_are_equal_for_any_number_of_threads(kernels, monkeypatch, n_threads):
    conv, images = strided_conv(32, 64, 3, stride=2, padding=1), whole(200, 32, 13, 13, seed=5)
    expected = slow_twin(conv, images)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    for ours, theirs in zip(learn(conv, images, StridedConv2d.__call__), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_images_without_gradient_receive_none(kernels):
    conv, images = strided_conv(4, 3, 3, stride=2), whole(2, 4, 9, 9, seed=5)
    expected = slow_twin(conv, images)[2]
    conv.zero_grad()
    outputs = conv(images)
    outputs.backward(whole(*outputs.shape, seed=9))
    assert images.grad is None
    assert torch.equal(conv.weight.grad.float(), expected)


@pytest.mark.parametrize(
    ("options", "prepare"),
    [
        ({}, lambda conv, images: conv.float() and images.float()),
        ({}, lambda conv, images: conv.requires_grad_(False) and images),
        ({}, lambda conv, images: images.contiguous()),
        ({"dilation": 2}, lambda conv, images: images),
        ({"groups": 2}, lambda conv, images: images),
        ({"padding_mode": "circular"}, lambda conv, images: images),
    ],
    ids=["float32", "frozen weights", "channels first", "dilated", "in groups", "other padding"],
)
def test_pytorch_computes_all_other_cases(monkeypatch, options, prepare):
    monkeypatch.setattr(loading, "load_kernels", lambda *_: pytest.fail("the kernels were requested"))
    conv, images = strided_conv(4, 6, 3, stride=2, padding=1, **options), whole(2, 4, 9, 9)
    images = prepare(conv, images)
    assert torch.equal(conv(images), nn.Conv2d.forward(conv, images))


@pytest.mark.parametrize("obstacle", ["gather_patches", "shares_threads"])
def test_pytorch_computes_without_the_kernels(forget_kernels, monkeypatch, obstacle):
    pytest.importorskip("numba")
    monkeypatch.delattr("fmcli.networks.cpu.kernels." + obstacle)
    conv, images = strided_conv(4, 6, 3, stride=2, padding=1), whole(2, 4, 9, 9)
    expected = learn(conv, images, nn.Conv2d.forward)
    assert all(map(torch.equal, learn(conv, images, StridedConv2d.__call__), expected))
    assert loading._compile_kernels(strided._StridedConv, torch.bfloat16) is None


def test_only_strided_convolutions_use_the_kernel():
    layers = [Conv(filters=4, kernel_size=3), Conv(filters=4, kernel_size=3, stride=2), Flatten(), Dense(units=2)]
    kinds = [type(layer) for layer in build_network(layers, (1, 12, 12), 2) if isinstance(layer, nn.Conv2d)]
    assert kinds == [nn.Conv2d, StridedConv2d]
