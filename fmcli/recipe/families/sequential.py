"""The family `sequential`: networks written layer by layer."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fmcli.recipe.families.base import Family
from fmcli.recipe.layers import Conv, InitKey, LayerSpec, RecipeLayer, Residual, Size

MAX_LAYERS = 1000  # including inner layers
MAX_DEPTH = 8  # levels of layers inside each other


class SequentialSpec(Family):
    """A network written layer by layer."""

    family: Literal["sequential"] = "sequential"
    layers: Annotated[tuple[RecipeLayer, ...], Field(strict=False, min_length=1, max_length=MAX_LAYERS)] = Field(
        description="Layers from first to last. The last layer must return one logit per class."
    )
    init: InitKey = "torch"

    @field_validator("layers", mode="before")
    @classmethod
    def _limit_layers(cls, layers: Any) -> Any:
        # pydantic checks max_length only after it has validated every layer, and has no limit for inner layers.
        level, count, depth = layers, 0, 0
        while isinstance(level, list) and level:
            count, depth = count + len(level), depth + 1
            bodies = [layer.get("body") for layer in level if isinstance(layer, dict)]
            level = [layer for body in bodies if isinstance(body, list) for layer in body]
        if count > MAX_LAYERS:
            raise ValueError(f"got {count} layers; expected at most {MAX_LAYERS}")
        if depth > MAX_DEPTH:
            raise ValueError(f"got {depth} levels of layers inside each other; expected at most {MAX_DEPTH}")
        return layers

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the layers as written."""
        return self.layers

    @property
    def kernel_sizes(self) -> tuple[Size, ...]:
        """Kernel sizes of the convolutions, including inner layers."""
        return tuple(_kernel_sizes(self.layers))


def _kernel_sizes(layers: Sequence[RecipeLayer]) -> Iterator[Size]:
    for layer in layers:
        if isinstance(layer, Conv):
            yield layer.kernel_size
        elif isinstance(layer, Residual):
            yield from _kernel_sizes(layer.body)
