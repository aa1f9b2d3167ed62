"""The base class of all network families."""

from pydantic import Field

from fmcli.recipe.base import Spec
from fmcli.recipe.layers import INIT_DESCRIPTION, Initialization, LayerSpec, Size


class Family(Spec):
    """A kind of `[model]` table. A family adds keys, and `expand` turns their values into layers."""

    family: str
    init: Initialization = Field("torch", description=INIT_DESCRIPTION)

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the layers of the network. The last layer returns one logit per class.

        Args:
            input_shape: (C, H, W).
            n_classes: Number of classes of the data.
        """
        raise NotImplementedError

    @property
    def kernel_sizes(self) -> tuple[Size, ...]:
        """Kernel sizes of the convolutions, in any order."""
        raise NotImplementedError

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
