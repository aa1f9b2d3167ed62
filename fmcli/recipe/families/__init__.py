"""Network families: the kinds of `[model]` tables, and the layers that each expands to."""

from typing import Annotated

from pydantic import Field

from fmcli.recipe.families import kernel_cnn
from fmcli.recipe.families.kernel_cnn import KernelCnnSpec
from fmcli.recipe.families.sequential import MAX_LAYERS, SequentialSpec
from fmcli.recipe.layers import Conv, LayerSpec, Size

__all__ = ["MAX_LAYERS", "KernelCnnSpec", "ModelSpec", "SequentialSpec", "expand_layers", "kernel_group"]

ModelSpec = Annotated[KernelCnnSpec | SequentialSpec, Field(discriminator="family")]


def expand_layers(model: ModelSpec, n_classes: int, input_shape: tuple[int, ...]) -> tuple[LayerSpec, ...]:
    """Return the layers of a model; the last one returns one logit per class.

    Args:
        model: A `[model]` table of any family.
        n_classes: Number of classes of the data.
        input_shape: (C, H, W).
    """
    if isinstance(model, KernelCnnSpec):
        return tuple(kernel_cnn.expand(model, input_shape, n_classes))
    return model.layers


def kernel_group(model: ModelSpec) -> str:
    """Return the kernel sizes of a network's convolutions as text; a two-level vote groups members by it.

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
