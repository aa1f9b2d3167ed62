"""What is known of images before a byte is read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Shape and classes of a recipe's images.

    Args:
        input_shape: (C, H, W) of one image.
        class_names: In label order.
        n_train: How many training images, where that is known.
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
"""What may stand before the colon in `data.source`, as in `folder:DIR`, and what comes after."""
