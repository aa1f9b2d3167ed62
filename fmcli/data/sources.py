"""Load labelled images from the sources `fashion-mnist`, `folder:DIR`, `idx:DIR` and `npz:FILE`."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.data.cache import cache_folder
from fmcli.data.idx import check_labels, open_idx, read_idx, to_images
from fmcli.data.image_folder import read_image_folder
from fmcli.data.image_set import Splits, check_image_set
from fmcli.data.npz import read_npz
from fmcli.errors import DataError, printable
from fmcli.recipe.data import KNOWN_SOURCES, DataSpec
from fmcli.storage.reading import MAX_CLASSES, read_text

# SHA-256 of the current files (published 31 August 2017), unpacked because distributors compress them differently.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SYSTEM_FOLDER = Path("/usr/share/datasets")
MAX_CLASSES_FILE_BYTES = 1 << 20
_SPLIT_PREFIXES = {"train": ("train",), "test": ("t10k", "test"), "validation": ("validation", "val")}
_FETCH_HINT = "to download it: fmcli data fetch fashion-mnist"


def load_source(spec: DataSpec, *, data_root: Path | None = None) -> Splits:
    """Load the images of a source, in the splits of the source.

    Args:
        spec: The recipe's `[data]` table.
        data_root: First folder to search for built-in datasets; default: the environment variable `FMCLI_DATA`. Also
            the parent of a relative DIR or FILE that does not exist in the current folder.

    Raises:
        DataError: The source does not exist or is damaged.
    """
    if spec.source in KNOWN_SOURCES:
        return _load_fashion_mnist(spec, data_root)
    kind, _, name = spec.source.partition(":")
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # unknown ~user
        raise DataError(f"{printable(name)}: {error}", hint="give the whole path") from error
    if data_root is not None and not path.exists():
        path = data_root / path
    if kind == "folder":
        return read_image_folder(path, classes=spec.classes, size=spec.size, channels=spec.channels)
    return _load_idx_folder(spec, path) if kind == "idx" else _check_splits(spec, path, read_npz(path), ())


def fashion_mnist_folders(data_root: Path | None) -> Iterator[Path]:
    """Yield the folders to search for Fashion-MNIST, in order."""
    root = data_root or (Path(os.environ["FMCLI_DATA"]) if os.environ.get("FMCLI_DATA") else None)
    if root is not None:
        yield from (root / "fashion-mnist", root / "FashionMNIST" / "raw", root)
    yield cache_folder() / "fashion-mnist"
    yield SYSTEM_FOLDER / "fashion-mnist"


def find_fashion_mnist(data_root: Path | None) -> Path | None:
    """Return the first folder with all four files, or None."""
    folders = fashion_mnist_folders(data_root)
    return next((folder for folder in folders if all(_existing(folder / name) for name in FASHION_MNIST_FILES)), None)


def verify_fashion_mnist(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the four files of Fashion-MNIST and compare each with its published digest.

    Returns:
        Array of each file.

    Raises:
        DataError: A file is missing or differs from the published file.
    """
    arrays = {}
    for name, digest in FASHION_MNIST_FILES.items():
        path = _existing(folder / name)
        if path is None:
            raise DataError(f"{printable(folder)} has no {name} or {name}.gz", hint=_FETCH_HINT)
        arrays[name], content = read_idx(path)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise DataError(
                f"{printable(path)} is not the published file: the SHA-256 of the content is {found[:16]}…, expected "
                f"{digest[:16]}… (files from before 31 August 2017 are different)",
                hint="remove the file, then run: fmcli data fetch fashion-mnist",
            )
    return arrays


def _load_fashion_mnist(spec: DataSpec, data_root: Path | None) -> Splits:
    folder = find_fashion_mnist(data_root)
    if folder is None:
        searched = ", ".join(map(printable, fashion_mnist_folders(data_root)))
        raise DataError(f"Fashion-MNIST was not found in {searched}", hint=_FETCH_HINT)
    arrays = verify_fashion_mnist(folder)
    pairs = {
        split: (arrays[f"{prefix}-images-idx3-ubyte"][:, None], arrays[f"{prefix}-labels-idx1-ubyte"])
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    return _check_splits(spec, folder, pairs, KNOWN_SOURCES["fashion-mnist"].class_names)


def _load_idx_folder(spec: DataSpec, folder: Path) -> Splits:
    if not folder.is_dir():
        raise DataError(
            f"{printable(folder)} is not a folder", hint="data.source = 'idx:DIR' needs a folder of IDX files"
        )
    pairs = {split: pair for split in _SPLIT_PREFIXES if (pair := _read_pair(folder, split)) is not None}
    for split in ("train", "test"):
        if split not in pairs:
            raise DataError(
                f"{printable(folder)} has no {split} images",
                hint="name the files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
                "t10k-labels-idx1-ubyte, gzipped or not",
            )
    return _check_splits(spec, folder, pairs, _read_class_names(folder))


def _check_splits(
    spec: DataSpec,
    path: Path,
    pairs: Mapping[str, tuple[NDArray[np.uint8], NDArray[Any]]],
    class_names: tuple[str, ...],
) -> Splits:
    """Check the images and labels of each split. Classes without names are named by their labels."""
    n_classes = 1 + max(int(labels.max(initial=0)) for _, labels in pairs.values())
    if n_classes > MAX_CLASSES:
        raise DataError(f"{printable(path)} has the label {n_classes - 1}; the limit is {MAX_CLASSES} classes")
    names = spec.classes or class_names or tuple(str(label) for label in range(n_classes))
    sets = {
        split: check_image_set(images, labels, names, where=f"{path} ({split})")
        for split, (images, labels) in pairs.items()
    }
    for split, images in sets.items():
        if images.input_shape != sets["train"].input_shape:
            raise DataError(
                f"{printable(path)}: {split} images have shape {images.input_shape} (C, H, W), "
                f"but train images have shape {sets['train'].input_shape}; all images must have the same shape"
            )
    return Splits(sets["train"], sets.get("validation"), sets["test"], path)


def _read_class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    lines = read_text(path, MAX_CLASSES_FILE_BYTES, DataError).splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _read_pair(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[Any]] | None:
    """Return the images and labels of a split, or None if the folder has neither."""
    for prefix in _SPLIT_PREFIXES[split]:
        images = _existing(folder / f"{prefix}-images-idx3-ubyte") or _existing(folder / f"{prefix}-images-idx4-ubyte")
        labels = _existing(folder / f"{prefix}-labels-idx1-ubyte")
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            found, missing = ("labels", "images") if labels else ("images", "labels")
            raise DataError(f"{printable(folder)} has {prefix} {found} but no {prefix} {missing}")
        checked_labels = check_labels(read_idx(labels)[0], where=labels)
        return to_images(open_idx(images), where=images), checked_labels
    return None


def _existing(path: Path) -> Path | None:
    """Return the path of a file or of the gzipped file, whichever exists, or None."""
    return next((candidate for candidate in (path, path.with_name(path.name + ".gz")) if candidate.is_file()), None)
