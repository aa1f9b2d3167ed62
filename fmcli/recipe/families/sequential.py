"""The family `sequential`: networks written layer by layer."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fmcli.recipe.families.base import Family
from fmcli.recipe.layers import Conv, LayerSpec, Size

MAX_LAYERS = 1000


class SequentialSpec(Family):
    """A network written layer by layer."""

    family: Literal["sequential"] = "sequential"
    layers: Annotated[tuple[LayerSpec, ...], Field(strict=False, min_length=1, max_length=MAX_LAYERS)] = Field(
        description="Layers from first to last. The last layer must return one logit per class."
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _limit_layers(cls, layers: Any) -> Any:
        # pydantic checks max_length only after it has validated every layer.
        if isinstance(layers, list) and len(layers) > MAX_LAYERS:
            raise ValueError(f"got {len(layers)} layers; expected at most {MAX_LAYERS}")
        return layers

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the layers as written."""
        return self.layers

    @property
    def kernel_sizes(self) -> tuple[Size, ...]:
        """Kernel sizes of the convolutions."""
        return tuple(layer.kernel_size for layer in self.layers if isinstance(layer, Conv))
