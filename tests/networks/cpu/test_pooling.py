"""Max-pooling, alone and after a convolution: compiled kernels compared with PyTorch, and the fallbacks."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.cpu import loading, pooling
from fmcli.networks.cpu.pooling import ConvPoolReLU, MaxPool2d
from fmcli.recipe.layers import BatchNorm, Conv, Dense, Flatten, MaxPool
from tests.networks.helpers import build_network
from tests.processes import StartedProcess


def learn():
    """Return whether the gradient of a pooled tensor is correct."""
    images = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    pooling.MaxPool2d((2, 2), (2, 2))(images).sum().backward()
    return bool(images.grad.sum() == 2 * 8 * 3 * 3)


@pytest.fixture
def kernels():
    found = loading._compile_kernels(pooling._Pool, torch.float32)
    if found is None:
        say = pytest.fail if os.environ.get("CI") and sys.platform == "linux" else pytest.skip
        say("numba finds no OpenMP here, so PyTorch pools")
    return found


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_images(shape, dtype):
    """Return images with few values, for many ties, including zeros of both signs, infinities and NaN."""
    values = torch.tensor([-torch.inf, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, torch.inf, torch.nan])
    images = values[torch.randint(0, len(values), shape, generator=seeded())]
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def pool_and_learn(network, images, *, dense=True):
    """Return the outputs and the gradient of the images."""
    images = images.clone().requires_grad_()
    maxima = network(images)
    gradient = torch.randn(maxima.shape, generator=seeded(1)) if dense else torch.ones(1).expand(maxima.shape)
    maxima.backward(gradient.to(maxima.dtype))
    return maxima.detach(), images.grad


def tiled():
    return MaxPool2d((2, 2), (2, 2))


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (5, 32, 13, 12), (2, 67, 8, 9), (1, 3, 3, 3), (0, 4, 4, 4)])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dense", [True, False])
def test_the_kernels_give_pytorchs_values_and_gradients(kernels, monkeypatch, dtype, shape, n_threads, dense):
    images = draw_images(shape, dtype)
    expected = pool_and_learn(nn.MaxPool2d(2), images, dense=dense)
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda *_: pytest.fail("PyTorch's were used"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    found = pool_and_learn(tiled(), images, dense=dense)
    assert_equal(found, expected)
    signs = [maxima.nan_to_num(1.0).signbit() for maxima, _ in (found, expected)]
    assert torch.equal(*signs)  # signs of zeros, too; PyTorch makes the zeros of gradients positive
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in found)


def test_several_python_threads_can_pool_in_parallel(kernels):
    images = [draw_images((4, 16, 8, 8), dtype) for dtype in (torch.float32, torch.bfloat16)] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: pool_and_learn(tiled(), one), images))
    for ours, one in zip(found, images, strict=True):
        assert_equal(ours, pool_and_learn(nn.MaxPool2d(2), one))


@pytest.mark.parametrize(
    ("pooled", "prepare"),
    [
        (((3, 3), (3, 3)), lambda images: images.requires_grad_()),
        (((2, 2), (1, 1)), lambda images: images.requires_grad_()),
        (((2, 1), (2, 1)), lambda images: images.requires_grad_()),
        (((2, 2), (2, 2), 1), lambda images: images.requires_grad_()),
        (((2, 2), (2, 2), 0, 2), lambda images: images.requires_grad_()),
        (((2, 2), (2, 2), 0, 1, False, True), lambda images: images.requires_grad_()),
        (((2, 2), (2, 2)), lambda images: images.contiguous().requires_grad_()),
        (((2, 2), (2, 2)), lambda images: images.double().requires_grad_()),
        (((2, 2), (2, 2)), lambda images: images),
    ],
    ids=["larger", "overlapping", "oblong", "padded", "dilated", "ceiling", "channels first", "float64", "no gradient"],
)
def test_pytorch_pools_all_other_cases(monkeypatch, pooled, prepare):
    monkeypatch.setattr(loading, "load_kernels", lambda *_: pytest.fail("the kernels were requested"))
    images = prepare(torch.rand(2, 8, 7, 7).contiguous(memory_format=torch.channels_last))
    assert torch.equal(MaxPool2d(*pooled)(images), nn.MaxPool2d(*pooled)(images))


def test_an_image_without_a_whole_tile_is_refused_as_by_pytorch():
    images = torch.rand(2, 8, 1, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    with pytest.raises(RuntimeError, match="Output size is too small"):
        tiled()(images)


@pytest.mark.parametrize(
    "obstacle",
    ["import", "threads", "another pool", "compile", "backward"],
)
def test_pytorch_pools_without_the_kernels(kernels, forget_kernels, monkeypatch, obstacle):
    def fail(*_):
        raise OSError("no room on the disk")

    match obstacle:
        case "import":
            monkeypatch.setitem(sys.modules, "fmcli.networks.cpu.kernels", None)
            monkeypatch.delattr("fmcli.networks.cpu.kernels")
        case "threads":
            monkeypatch.setattr(kernels, "use_threads", fail)
        case "another pool":
            monkeypatch.setattr(kernels.numba, "threading_layer", lambda: "workqueue")
        case "compile":
            monkeypatch.setattr(kernels, "pool", fail)
        case "backward":
            monkeypatch.setattr(kernels, "pool_backward", fail)
    images = draw_images((4, 8, 6, 6), torch.bfloat16)
    assert_equal(pool_and_learn(tiled(), images), pool_and_learn(nn.MaxPool2d(2), images))
    assert loading._compile_kernels(pooling._Pool, torch.bfloat16) is None


def load_kernels_with_one_thread():
    torch.set_num_threads(1)
    assert learn()
    assert loading._compile_kernels(pooling._Pool, torch.float32)
    assert torch.get_num_threads() == 1


def test_loading_keeps_pytorchs_thread_count(kernels):
    done = StartedProcess(load_kernels_with_one_thread).finish()
    assert done.status == 0, done.err


def learn_in_child():
    child = os.fork()
    if not child:
        os._exit(0 if learn() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_three_times():
    """Fork before the kernels are loaded, after they are loaded, and after they were used."""
    torch.set_num_threads(1)
    assert learn_in_child() == 0
    loading._compile_kernels(pooling._Pool, torch.bfloat16)
    assert learn_in_child() == 0
    learn()
    assert learn_in_child() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_pools(kernels):
    done = StartedProcess(fork_three_times).finish()
    assert done.status == 0, done.err


def test_a_numba_file_in_the_working_directory_is_ignored(kernels, tmp_path):
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: strangers\ncache_locator_classes: strangers.Locator\n")
    program = """
import torch
from fmcli.networks.cpu import loading, pooling
print(loading.load_kernels(pooling._Pool, torch.float32) is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "strangers").exists()


# --- after a convolution ---------------------------------------------------------------------------------


def three(n_filters=32, *, padding=0, bias=True, whole=True, seed=0):
    """Return the three layers in bfloat16, with random weights; integers, if whole, have exact sums in float32."""
    conv = nn.Conv2d(1, n_filters, 3, padding=padding, bias=bias)
    for weights in conv.parameters():
        draws = torch.randn(weights.shape, generator=seeded(seed))
        weights.data = (draws.mul(2).round() if whole else draws).to(torch.bfloat16)
    return [conv, tiled(), nn.ReLU()]


def pixels(*shape, whole=True, seed=1):
    draws = torch.rand(shape, generator=seeded(seed))
    return (draws.mul(4).round() if whole else draws).to(torch.bfloat16)


def compute_and_learn(network, conv, images):
    """Return the outputs in float32 and the gradients of the convolution's weights."""
    conv.zero_grad()
    outputs = network(images)
    outputs.backward(torch.randn(outputs.shape, generator=seeded(2)).mul(4).round().to(outputs.dtype))
    return [outputs.detach().float(), *(weights.grad.float() for weights in conv.parameters())]


def compute_in_float32(layers, images):
    """Reference implementation: PyTorch's three layers in float32, then rounded."""
    conv, *others = copy.deepcopy(layers)
    found = compute_and_learn(nn.Sequential(conv.float(), *others), conv, images.float())
    return [tensor.to(torch.bfloat16).float() for tensor in found]


@pytest.fixture
def convolving(kernels, monkeypatch):
    """Return a function that makes PyTorch's layers fail from then on."""
    assert loading._compile_kernels(pooling._ConvPoolReLU, torch.bfloat16) is kernels
    return lambda: monkeypatch.setattr(nn.Sequential, "forward", lambda *_: pytest.fail("PyTorch's were used"))


@pytest.mark.parametrize("shape", [(3, 28, 28), (70, 4, 4), (5, 13, 8), (2, 9, 27), (0, 8, 8), (1, 5, 5)])
@pytest.mark.parametrize("n_filters", [1, 32, 67])
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize(("bias", "n_threads"), [(True, 1), (False, 2)])
def test_fused_layers_give_float32_results(convolving, monkeypatch, shape, n_filters, padding, bias, n_threads):
    layers, images = three(n_filters, padding=padding, bias=bias), pixels(shape[0], 1, *shape[1:])
    expected = compute_in_float32(layers, images)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    convolving()
    assert_equal(compute_and_learn(ConvPoolReLU(*layers), layers[0], images), expected)


def test_fused_layers_round_to_nearest(convolving):
    layers, images = three(whole=False), pixels(40, 1, 28, 28, whole=False)
    outputs, *gradients = compute_in_float32(layers, images)
    convolving()
    found, *found_gradients = compute_and_learn(ConvPoolReLU(*layers), layers[0], images)
    assert (found != outputs).float().mean() < 1e-4  # sums in another order can round differently
    torch.testing.assert_close(found, outputs, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(found_gradients, gradients, rtol=2**-6, atol=0.1)  # sums of 7,000 terms, up to 500


def test_fused_layers_pass_on_nan_and_infinity(convolving):
    layers, images = three(), pixels(4, 1, 8, 8)
    layers[0].weight.data[3], layers[0].bias.data[5] = torch.nan, torch.inf
    expected = compute_in_float32(layers, images)
    convolving()
    found = compute_and_learn(ConvPoolReLU(*layers), layers[0], images)
    assert found[0][:, 3].isnan().all()
    assert found[0][:, 5].isinf().all()
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("layers", "fits"),
    [
        ([Conv(filters=4, kernel_size=3, activation="relu"), MaxPool(size=2)], True),
        ([Conv(filters=4, kernel_size=3, padding="same", activation="relu"), MaxPool(size=2)], True),
        ([Conv(filters=4, kernel_size=3, activation="tanh"), MaxPool(size=2)], False),
        ([Conv(filters=4, kernel_size=3), MaxPool(size=2)], False),
        ([Conv(filters=4, kernel_size=3, stride=2, activation="relu"), MaxPool(size=2)], False),
        ([Conv(filters=4, kernel_size=(3, 5), activation="relu"), MaxPool(size=2)], False),
        ([Conv(filters=4, kernel_size=3, activation="relu"), MaxPool(size=3)], False),
        ([Conv(filters=4, kernel_size=3, activation="relu")], False),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("before", [[], [BatchNorm()]], ids=["first", "after batch norm"])
def test_the_bf16_twin_fuses_its_first_layers_if_they_fit(layers, fits, n_channels, before):
    model = build_network([*before, *layers, Flatten(), Dense(units=2)], (n_channels, 12, 12), 2)
    fused = [layer for layer in Bf16Twin(model)._network if isinstance(layer, ConvPoolReLU)]
    assert len(fused) == (fits and n_channels == 1)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda layers, images: images.requires_grad_(),
        lambda layers, images: layers[0].requires_grad_(False) and images,
        lambda layers, images: layers[0].float() and images.float(),
        lambda layers, images: images[:, :, :3],
    ],
    ids=["gradient of images", "weights that do not learn", "float32", "no whole tile"],
)
def test_pytorch_computes_layers_that_cannot_be_fused(monkeypatch, prepare):
    layers = three(4)
    images = prepare(layers, pixels(2, 1, 8, 8))
    monkeypatch.setattr(loading, "load_kernels", lambda *_: pytest.fail("the kernels were requested"))
    layers[1] = nn.MaxPool2d(2)

    def answer(network):
        try:
            return network(images)
        except RuntimeError as error:
            return str(error)

    found, expected = answer(ConvPoolReLU(*layers)), answer(nn.Sequential(*layers))
    assert found == expected if isinstance(expected, str) else torch.equal(found, expected)


@pytest.mark.parametrize("kernel", ["convolve_and_pool", "convolve_and_pool_backward"])
def test_pytorch_computes_the_layers_without_the_fused_kernel(kernels, forget_kernels, monkeypatch, kernel):
    monkeypatch.delattr(kernels, kernel)
    layers, images = three(), pixels(2, 1, 8, 8)
    expected = compute_and_learn(nn.Sequential(*layers), layers[0], images)
    assert_equal(compute_and_learn(ConvPoolReLU(*layers), layers[0], images), expected)
    assert loading._compile_kernels(pooling._ConvPoolReLU, torch.bfloat16) is None
    assert loading._compile_kernels(pooling._Pool, torch.bfloat16) is kernels
