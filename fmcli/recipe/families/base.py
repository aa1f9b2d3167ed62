"""The base class of all network families, and functions for keys with one value per width."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fmcli.recipe.base import Spec
from fmcli.recipe.layers import Initialization, LayerSpec, Size


class Family(Spec):
    """A kind of `[model]` table. A family adds keys, and `expand` turns their values into layers."""

    if TYPE_CHECKING:  # each family defines these keys, so that `init` is its last key
        family: str
        init: Initialization

    @abstractmethod
    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the layers of the network. The last layer returns one logit per class.

        Args:
            input_shape: (C, H, W).
            n_classes: Number of classes of the data.
        """

    @property
    def initial_weights(self) -> str | None:
        """Path of a file with initial weights; None if all are random."""
        return None

    @property
    @abstractmethod
    def kernel_sizes(self) -> tuple[Size, ...]:
        """Kernel sizes of the convolutions, in any order."""

    @property
    def kernel_group(self) -> str:
        """Kernel sizes as text. A two-level vote groups members by this text.

        Example:
            >>> from fmcli.recipe.families.kernel_cnn import KernelCnnSpec
            >>> KernelCnnSpec(kernel_size=(5, 3), widths=(8, 16)).kernel_group
            '3+5'
        """
        shown = {str(size) if isinstance(size, int) else "×".join(map(str, size)) for size in self.kernel_sizes}
        return "+".join(sorted(shown)) or "none"


def repeat_per_width(value: int | tuple[int, ...], widths: Sequence[int]) -> tuple[int, ...]:
    """Return one value per width of a key that is one number or a list.

    Example:
        >>> repeat_per_width(3, (16, 32)), repeat_per_width((3, 5), (16, 32))
        ((3, 3), (3, 5))
    """
    return (value,) * len(widths) if isinstance(value, int) else value


def check_one_per_width(key: str, value: int | tuple[int, ...], widths: Sequence[int]) -> None:
    """Check the length of a list.

    Raises:
        ValueError: The list does not have one value per width.
    """
    given, needed = len(repeat_per_width(value, widths)), len(widths)
    if given != needed:
        raise ValueError(f"{key} must be one number, or a list of {needed}, one per width; got a list of {given}")
