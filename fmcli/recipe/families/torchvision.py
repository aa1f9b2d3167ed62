"""The family `torchvision`: published networks, random or with pretrained weights."""

from typing import Annotated, Literal

from pydantic import Field

from fmcli.recipe.families.base import Family
from fmcli.recipe.layers import Backbone, Initialization, LayerSpec, Size


class TorchvisionSpec(Family):
    """A classification network of torchvision, adapted to the size and channels of the images.

    The first convolution gets the number of channels of the images. For images below 64 pixels it also gets stride 1
    and a kernel of at most 3×3 pixels, without max-pooling after it, or smaller patches.
    """

    family: Literal["torchvision"] = "torchvision"
    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Name of the network in torchvision, such as `resnet18` or `mobilenet_v3_small`."
    )
    weights: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Path of a safetensors file with initial weights, by torchvision's names. The last layer is always "
        "random, and the first convolution if its shape differs. Default: all weights are random.",
    )
    init: Initialization = Field(
        "torch",
        description="Distribution of random initial weights. `torch`: torchvision's own. With other values, all "
        "convolutions and dense layers have this distribution, and biases are zero.",
    )

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the whole network as one layer."""
        return (Backbone(name=self.name, weights=self.weights, n_classes=n_classes),)

    @property
    def initial_weights(self) -> str | None:
        """Path of the file of initial weights."""
        return self.weights

    @property
    def kernel_sizes(self) -> tuple[Size, ...]:
        """No kernel sizes: they are defined in torchvision."""
        return ()
