"""Max-pooling: compiled kernels against PyTorch's own, and where they are not used."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fmcli.models import pooling
from fmcli.models.pooling import MaxPool2d

LEARN = """
import torch
torch.set_num_threads(1)
from fmcli.models import pooling

def learn():
    images = torch.rand(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    pooling.MaxPool2d((2, 2), (2, 2))(images).sum().backward()
    return bool(images.grad.sum() == 2 * 8 * 3 * 3)

"""


@pytest.fixture
def kernels():
    found = pooling._compile_kernels(torch.float32)
    if found is None:
        say = pytest.fail if os.environ.get("CI") and sys.platform == "linux" else pytest.skip
        say("no OpenMP that numba could use here: PyTorch pools")
    return found


@pytest.fixture
def forget():
    """Let what was compiled be asked for anew, before and after."""
    pooling._compile_kernels.cache_clear()
    yield
    pooling._compile_kernels.cache_clear()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_images(shape, dtype):
    """Return images of few values, for many equal maxima: zeros of both signs, infinities and NaN are among them."""
    values = torch.tensor([-torch.inf, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, torch.inf, torch.nan])
    images = values[torch.randint(0, len(values), shape, generator=seeded())]
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def pool_and_learn(network, images, *, dense=True):
    """Return what comes out, and the gradient of what went in."""
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


def run(code, **options):
    return subprocess.run([sys.executable, "-c", LEARN + code], check=False, capture_output=True, text=True, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (5, 32, 13, 12), (2, 67, 8, 9), (1, 3, 3, 3), (0, 4, 4, 4)])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dense", [True, False])
def test_the_kernels_give_pytorchs_numbers_and_gradients(kernels, monkeypatch, dtype, shape, n_threads, dense):
    images = draw_images(shape, dtype)
    expected = pool_and_learn(nn.MaxPool2d(2), images, dense=dense)
    monkeypatch.setattr(nn.MaxPool2d, "forward", lambda *_: pytest.fail("PyTorch's were used"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    found = pool_and_learn(tiled(), images, dense=dense)
    assert_equal(found, expected)
    signs = [maxima.nan_to_num(1.0).signbit() for maxima, _ in (found, expected)]
    assert torch.equal(*signs)  # of zeros, too; those of gradients PyTorch makes positive
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in found)


def test_several_threads_of_python_may_pool_at_once(kernels):
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
def test_pytorch_pools_what_the_kernels_are_not_for(monkeypatch, pooled, prepare):
    monkeypatch.setattr(pooling, "_load_kernels", lambda _: pytest.fail("the kernels were asked for"))
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
def test_where_the_kernels_cannot_be_had_pytorch_pools(kernels, forget, monkeypatch, obstacle):
    def fail(*_):
        raise OSError("no room on the disk")

    match obstacle:
        case "import":
            monkeypatch.setitem(sys.modules, "fmcli.models.pool_kernels", None)
            monkeypatch.delattr("fmcli.models.pool_kernels")
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
    assert pooling._compile_kernels(torch.bfloat16) is None


def test_pytorch_keeps_the_threads_that_it_was_given(kernels):
    done = run("assert learn() and pooling._compile_kernels(torch.float32); print(torch.get_num_threads())")
    assert done.stdout == "1\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
@pytest.mark.parametrize("before", ["learn()", "pooling._compile_kernels(torch.bfloat16)", "pass"])
def test_a_forked_process_pools(kernels, before):
    done = run(f"""
import os
{before}
child = os.fork()
if not child:
    os._exit(0 if learn() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert done.stdout == "0\n", done.stderr


def test_a_file_in_the_working_directory_does_not_say_what_code_is_loaded(kernels, tmp_path):
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: strangers\ncache_locator_classes: strangers.Locator\n")
    done = run("assert learn(); print(pooling._compile_kernels(torch.float32) is not None)", cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "strangers").exists()
