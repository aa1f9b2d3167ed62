"""The family `sequential`: networks written layer by layer."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fmcli.recipe.layers import Initialization, LayerSpec
from fmcli.recipe.spec import Spec

MAX_LAYERS = 1000


class SequentialSpec(Spec):
    """A network spelled out layer by layer."""

    family: Literal["sequential"] = "sequential"
    layers: Annotated[tuple[LayerSpec, ...], Field(strict=False, min_length=1, max_length=MAX_LAYERS)]
    init: Initialization = "torch"
    """How kernels are drawn: PyTorch's own way, or by name; biases are zero unless `torch`."""

    @field_validator("layers", mode="before")
    @classmethod
    def _not_too_many(cls, layers: Any) -> Any:
        if isinstance(layers, list) and len(layers) > MAX_LAYERS:  # before each of them is looked at
            raise ValueError(f"got {len(layers)} layers; expected at most {MAX_LAYERS}")
        return layers
