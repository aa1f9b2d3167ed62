"""What is known of the built-in sources before a byte is read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownSource:
    """Shape and classes of a source that is named in recipes.

    Args:
        input_shape: (C, H, W) of one image.
        class_names: In label order.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


KNOWN_SOURCES = {
    "fashion-mnist": KnownSource(
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
    ),
}
SOURCE_PREFIXES = ("idx",)
"""What may stand before the colon in `data.source`, as in `idx:DIR`."""
