"""Max-pooling: compiled kernels against PyTorch's own, to the last bit, and where they are not used."""

import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from fmcli.models import pooling
from fmcli.models.pooling import MaxPool2d


@pytest.fixture
def kernels():
    found = pooling._load_kernels()
    if found is None:
        pytest.skip("no OpenMP that numba could use here: PyTorch pools")
    return found


def draw_images(shape, dtype):
    """Return images of few values, for many equal maxima: zeros of both signs, infinities and NaN are among them."""
    values = torch.tensor([-torch.inf, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, torch.inf, torch.nan])
    images = values[torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(0))]
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def pool_and_learn(network, images):
    """Return what comes out, and the gradient of what went in."""
    images = images.clone().requires_grad_()
    maxima = network(images)
    maxima.backward(torch.randn(maxima.shape, generator=torch.Generator().manual_seed(1)).to(maxima.dtype))
    return maxima.detach(), images.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (5, 32, 13, 12), (2, 67, 8, 9), (1, 3, 3, 3), (0, 4, 4, 4)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_kernels_give_pytorchs_numbers_and_gradients(kernels, monkeypatch, dtype, shape, n_threads):
    images = draw_images(shape, dtype)
    expected = pool_and_learn(nn.MaxPool2d(2), images)
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda *_: pytest.fail("PyTorch's were used"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    found = pool_and_learn(MaxPool2d((2, 2), (2, 2)), images)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("size", "stride", "prepare"),
    [
        ((3, 3), (3, 3), lambda images: images.requires_grad_()),
        ((2, 2), (1, 1), lambda images: images.requires_grad_()),
        ((2, 1), (2, 1), lambda images: images.requires_grad_()),
        ((2, 2), (2, 2), lambda images: images.contiguous().requires_grad_()),
        ((2, 2), (2, 2), lambda images: images.double().requires_grad_()),
        ((2, 2), (2, 2), lambda images: images),
    ],
    ids=["larger tiles", "overlapping", "oblong", "channels first", "float64", "no gradient"],
)
def test_pytorch_pools_what_the_kernels_are_not_for(monkeypatch, size, stride, prepare):
    monkeypatch.setattr(pooling, "_load_kernels", lambda: pytest.fail("the kernels were asked for"))
    images = prepare(torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last))
    assert torch.equal(MaxPool2d(size, stride)(images), nn.MaxPool2d(size, stride)(images))


def test_an_image_without_a_whole_tile_is_refused_as_by_pytorch():
    images = torch.rand(2, 8, 1, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    with pytest.raises(RuntimeError, match="Output size is too small"):
        MaxPool2d((2, 2), (2, 2))(images)


def test_where_there_are_no_kernels_pytorch_pools(monkeypatch):
    monkeypatch.setattr(pooling, "_load_kernels", lambda: None)
    images = draw_images((4, 8, 6, 6), torch.bfloat16)
    found, expected = (pool_and_learn(network, images) for network in (MaxPool2d((2, 2), (2, 2)), nn.MaxPool2d(2)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "obstacle", [ImportError, RuntimeError("cannot cache function"), ValueError("No threading layer")]
)
def test_kernels_that_cannot_be_had_are_done_without(kernels, monkeypatch, obstacle):
    monkeypatch.setattr(kernels, "share_threads", Mock(side_effect=obstacle))
    assert pooling._load_kernels.__wrapped__() is None


def test_pytorch_keeps_the_threads_that_it_was_given():
    code = """
import torch
torch.set_num_threads(1)
from fmcli.models.pooling import MaxPool2d
images = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
MaxPool2d((2, 2), (2, 2))(images).sum().backward()
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
