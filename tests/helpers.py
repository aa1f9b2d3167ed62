"""Recipes, images and reporters for several test modules."""

import csv
import gzip
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmcli.ensemble import Combiner
from fmcli.ensemble.rules import rule_class

_IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}

TINY_RECIPE = """\
# Two small members on synthetic images.
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
    """Raise an error at the n-th event of a type.

    The default, KeyboardInterrupt, saves nothing. It simulates a killed process.
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
    """Write an array as an IDX file (`path` without `.gz`) and return its path."""
    content = idx_bytes(array)
    target = path.with_name(path.name + ".gz") if gz else path
    target.write_bytes(gzip.compress(content, compresslevel=1, mtime=0) if gz else content)
    return target


def draw_quadrants(n: int, *, seed: int = 0, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy images, uint8 (N, H, W), and labels, (N,). The label is the index of the bright quadrant."""
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
        folder: Folder to write. It is created if missing.
        images: Training images, uint8 (N, H, W) or (N, H, W, 3).
        labels: Training labels, uint8 (N,).
        test: Test images and labels. Default: the first 20 training images.
        validation: Validation images and labels. Default: none.
        classes: Class names for `classes.txt`. Default: no such file.
        test_name: Prefix of the names of the test files.
        gz: Whether to compress the files with gzip.
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


def make_combiner(
    vote="majority", tie="probability", weights=None, groups=(), *, temperature=1.0, **parameters
) -> Combiner:
    """Return a voting rule with a temperature."""
    return Combiner(rule_class(vote)(tie, weights, groups, **parameters), temperature)
