"""Images to test on: small drawn ones that a network learns in a second, and the real ones."""

import csv
import gzip
import io
import itertools
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# The database would be one more folder in the checkout, and deadlines fail on a busy machine.
hypothesis.settings.register_profile("fmcli", deadline=None, database=None)
hypothesis.settings.load_profile("fmcli")

_CACHES = itertools.count()  # a new one for each test
_IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

TINY_RECIPE = """\
# Two tiny members on drawn images.
[data]
source = "idx:{folder}"
validation = {{ first = 40 }}

[model]
family = "kernel-cnn"
form = "pooled"
widths = [8, 16]
depth = 1

[optimizer]
lr = 1e-2

[trainer]
epochs = 3
batch_size = 32
precision = "fp32"

[[members]]
name = "k3"
model.kernel_size = 3

[[members]]
name = "k5"
model.kernel_size = 5
"""


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out)))


class StopAt:
    """A reporter that raises when an event of a kind comes for the n-th time.

    By default KeyboardInterrupt, which nothing saves for, so that it stands for a process that is killed.
    """

    def __init__(self, kind: type, count: int = 1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.kind, self.left, self.error = kind, count, error

    def __call__(self, event: object) -> None:
        self.left -= isinstance(event, self.kind)
        if self.left == 0:
            raise self.error


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of an IDX file."""
    code = _IDX_TYPES[array.dtype.str[1:]]
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write_idx(path: Path, array: np.ndarray, *, gz: bool = False) -> Path:
    """Write an array as an IDX file (`path` without `.gz`) and return where it went."""
    content = idx_bytes(array)
    target = path.with_name(path.name + ".gz") if gz else path
    target.write_bytes(gzip.compress(content, compresslevel=1, mtime=0) if gz else content)
    return target


def draw_quadrants(n: int, *, seed: int = 0, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Draw noisy pictures with one bright quadrant, whose place is the label: uint8 (N, H, W) and (N,)."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % 4).astype(np.uint8)
    half = size // 2
    images = generator.integers(0, 60, (n, size, size))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    return images.astype(np.uint8), labels


def write_idx_folder(
    folder: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    classes: Sequence[str] = (),
    test_name: str = "t10k",
    gz: bool = False,
) -> Path:
    """Write a folder of IDX files and return it.

    Args:
        folder: Made if missing.
        images: To train on, uint8 (N, H, W) or (N, H, W, 3).
        labels: uint8 (N,).
        test: Images and labels; by default the first of the training images.
        validation: Images and labels; by default there are none.
        classes: For `classes.txt`; by default there is none.
        test_name: How the test files' names begin.
        gz: Whether the files are gzipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"train": (images, labels), test_name: test or (images[:20], labels[:20])}
    if validation is not None:
        sets["validation"] = validation
    for name, (pixels, classes_of) in sets.items():
        write_idx(folder / f"{name}-images-idx{pixels.ndim}-ubyte", pixels, gz=gz)
        write_idx(folder / f"{name}-labels-idx1-ubyte", classes_of, gz=gz)
    if classes:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), "utf-8")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two would wait for each other wherever the machine has other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    """However short it is, so that tests know from where a training goes on."""
    monkeypatch.setattr("fmcli.training.loop._SAVING", math.inf)


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """The folder of the real images; in a test that asks for it, FMCLI_DATA names it."""
    from fmcli.data.sources import find_fashion_mnist

    folder = find_fashion_mnist(None)
    if folder is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("Fashion-MNIST is not here: fmcli data fetch")
    return folder


@pytest.fixture(autouse=True)
def _no_data_of_the_users(request, monkeypatch, tmp_path_factory):
    """Keep the user's datasets and cache out of a test, unless it asks for `fashion_mnist`."""
    if "fashion_mnist" in request.fixturenames:
        monkeypatch.setenv("FMCLI_DATA", str(request.getfixturevalue("fashion_mnist")))
    else:
        monkeypatch.delenv("FMCLI_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "caches" / str(next(_CACHES))))


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory) -> Path:
    """An IDX folder of 240 training and 100 test images, 12×12, four classes; not to be written to."""
    images, labels = draw_quadrants(240, seed=1)
    return write_idx_folder(
        tmp_path_factory.mktemp("drawn") / "quadrants",
        images,
        labels,
        test=draw_quadrants(100, seed=2),
        classes=("top left", "top right", "bottom left", "bottom right"),
    )


@pytest.fixture
def tiny_recipe(drawn_images, tmp_path) -> Path:
    """A recipe of two members on `drawn_images` that trains in about a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture
def cli(capfd):
    """Call fmcli in this process; returns its exit status and both streams."""
    from fmcli.cli import run

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return Result(int(status), *capfd.readouterr())

    return call


@pytest.fixture
def forget_kernels():
    """Let what was compiled be asked for anew, before and after."""
    from fmcli.networks.cpu import loading

    loading._compile_kernels.cache_clear()
    yield
    loading._compile_kernels.cache_clear()
