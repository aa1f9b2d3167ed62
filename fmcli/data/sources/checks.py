"""Check the images, labels and classes of a source. The checks are the same for all sources."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcli.data.image_set import MAX_IMAGE_VALUES, ImageSet, Splits
from fmcli.data.sources.base import SourceImages
from fmcli.errors import DataError, printable
from fmcli.storage.reading import MAX_CLASSES


def check_splits(source: SourceImages, classes: tuple[str, ...] | None) -> Splits:
    """Return the splits of a source after checking that images, labels and class names match.

    Args:
        source: The images and labels.
        classes: Class names in label order. Default: the names from the source; without any, the labels are the names.

    Raises:
        DataError: Training or test images are missing; images are too large, or their shapes differ between splits;
            there are too many classes, or two with one name; the numbers of images and labels differ; or a label has no
            class.
    """
    path = printable(source.path)
    for split in ("train", "test"):
        if split not in source.splits:
            raise DataError(f"{path} has no {split} images with labels", hint=source.names_hint)
    for split, (_, labels) in source.splits.items():
        _check_labels(labels, f"{path} ({split})")
    n_classes = 1 + max(int(labels.max(initial=0)) for _, labels in source.splits.values())
    if n_classes > MAX_CLASSES:
        raise DataError(f"{path} has the label {n_classes - 1}; the limit is {MAX_CLASSES} classes")
    names = classes or source.class_names or tuple(map(str, range(n_classes)))
    _check_class_names(names, path)
    sets = {}
    for split, (images, labels) in source.splits.items():
        _check_images(images, labels, len(names), f"{path} ({split})")
        sets[split] = ImageSet(images, labels.astype(np.int64), names, background=source.background)
    shape = sets["train"].input_shape
    for split, image_set in sets.items():
        if image_set.input_shape != shape:
            raise DataError(
                f"{path}: {split} images have shape {image_set.input_shape} (C, H, W), "
                f"but train images have shape {shape}; all images must have the same shape"
            )
    return Splits(sets["train"], sets.get("validation"), sets["test"], source.path)


def _check_labels(labels: NDArray[Any], where: str) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "ui" or labels.min(initial=0) < 0:
        raise DataError(
            f"the labels of {where} must be integers from 0 of shape (N,); found {labels.dtype} of shape {labels.shape}"
        )


def _check_class_names(names: tuple[str, ...], where: str) -> None:
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where} has {len(names)} classes; the limit is {MAX_CLASSES}")
    [(name, count)] = Counter(names).most_common(1)
    if count > 1:
        raise DataError(
            f"{where}: {count} classes are named {printable(name)}",
            hint="check data.classes in the recipe, or classes.txt",
        )


def _check_images(images: NDArray[np.uint8], labels: NDArray[Any], n_classes: int, where: str) -> None:
    if len(images) == 0:
        raise DataError(f"{where} has no images")
    if images[0].size > MAX_IMAGE_VALUES:
        raise DataError(
            f"{where} has images of {images[0].size} values (pixels × channels); the limit is {MAX_IMAGE_VALUES}"
        )
    if len(images) != len(labels):
        raise DataError(f"{where} has {len(images)} images but {len(labels)} labels")
    if int(labels.max()) >= n_classes:
        index = int((labels >= n_classes).argmax())
        raise DataError(
            f"{where}: image {index} has label {int(labels[index])}, "
            f"but there are {n_classes} classes (labels 0 to {n_classes - 1})",
            hint="check the labels file, or data.classes in the recipe",
        )
