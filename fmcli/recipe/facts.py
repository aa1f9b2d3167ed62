"""Facts about images that are known before any file is read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Shape and classes of a recipe's images.

    Args:
        input_shape: (C, H, W) of one image.
        class_names: Names in the order of their labels.
        n_train: Number of training images; None if unknown.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    n_train: int | None = None


KNOWN_SOURCES = {
    "fashion-mnist": SourceFacts(
        input_shape=(1, 28, 28),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        n_train=60_000,
    ),
}
SOURCE_PREFIXES = {"folder": "DIR", "idx": "DIR", "npz": "FILE"}
"""Prefixes of `data.source`, as in `folder:DIR`, each with the placeholder of its argument."""
