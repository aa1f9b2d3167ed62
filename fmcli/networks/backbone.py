"""Networks of torchvision as one module of a network."""

import torch
from torch import Tensor, nn

from fmcli.recipe import layers
from fmcli.recipe.layers import Initialization
from fmcli.recipe.tracing import Shape


class Backbone(nn.Module):
    """A network of torchvision.

    Other code does not look inside it: `initialize` draws its weights, and in bfloat16 training it keeps fp32 weights
    and multiplies under `torch.autocast`, because its input has the type bfloat16. Modules that draw random numbers are
    `Dropout` and `StochasticDepth` of `networks.dropout`.

    Args:
        layer: The layer of the recipe.
        input_shape: (C, H, W).
    """

    def __init__(self, layer: layers.Backbone, input_shape: Shape) -> None:
        super().__init__()
        raise NotImplementedError(layer, input_shape)

    def initialize(self, init: Initialization, generator: torch.Generator) -> None:
        """Draw all weights, or load those that the recipe names and draw the others."""
        raise NotImplementedError(init, generator)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of (N, C, H, W), with the type of the input."""
        raise NotImplementedError(images)


def measure_backbone(layer: layers.Backbone, input_shape: Shape, n_classes: int) -> tuple[int, int]:
    """Return the number of parameters, and of multiply-adds for one image."""
    raise NotImplementedError(layer, input_shape, n_classes)
