"""Network families: one file per kind of `[model]` table. `expand_layers` turns each kind into a list of layers."""

from typing import Annotated

from pydantic import Field

from fmcli.recipe.families.kernel_cnn import KernelCnnSpec, expand
from fmcli.recipe.families.sequential import SequentialSpec
from fmcli.recipe.layers import Conv, LayerSpec, Size

ModelSpec = Annotated[KernelCnnSpec | SequentialSpec, Field(discriminator="family")]


def expand_layers(model: ModelSpec, n_classes: int, input_shape: tuple[int, ...]) -> tuple[LayerSpec, ...]:
    """Return the layers of a model. The last layer returns one logit per class.

    Args:
        model: A `[model]` table of any family.
        n_classes: Number of classes of the data.
        input_shape: (C, H, W).
    """
    return model.layers if isinstance(model, SequentialSpec) else tuple(expand(model, input_shape, n_classes))


def kernel_group(model: ModelSpec) -> str:
    """Return the kernel sizes of a network's convolutions as text. A two-level vote groups members by this text.

    Example:
        >>> kernel_group(KernelCnnSpec(kernel_size=5, widths=(8, 16)))
        '5'
    """
    sizes: set[Size]
    if isinstance(model, KernelCnnSpec):
        sizes = set(model.kernel_sizes)
    else:
        sizes = {layer.kernel_size for layer in model.layers if isinstance(layer, Conv)}
    shown = {str(size) if isinstance(size, int) else "×".join(map(str, size)) for size in sizes}
    return "+".join(sorted(shown)) or "none"
