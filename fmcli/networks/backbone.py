"""Networks of torchvision as one module of a network."""

from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn

from fmcli.errors import RecipeError
from fmcli.networks.backbone_weights import load_weights
from fmcli.networks.initialization import initialize_layer
from fmcli.networks.torchvision_networks import (
    build_network,
    build_on_meta,
    build_uninitialized,
    check_name,
    find_classifier,
)
from fmcli.recipe import layers
from fmcli.recipe.layers import Initialization
from fmcli.recipe.tracing import Shape, show_shape


class Backbone(nn.Module):
    """A network of torchvision, with arbitrary weights until `initialize` is called or weights are loaded.

    Other code does not look inside it. In bfloat16 training it keeps float32 weights and multiplies under
    `torch.autocast`, because its input has the type bfloat16. Modules that draw random numbers are `Dropout` and
    `StochasticDepth` of `networks.dropout`.

    Args:
        layer: The layer of the recipe.
        input_shape: (C, H, W).
    """

    def __init__(self, layer: layers.Backbone, input_shape: Shape) -> None:
        super().__init__()
        self._layer, self._input_shape = layer, input_shape
        self.network = build_uninitialized(layer.name, input_shape, layer.n_classes)
        self.initialized: tuple[str, ...] = ()

    def initialize(self, init: Initialization, generator: torch.Generator) -> None:
        """Draw all weights, then load the file that the recipe names, if any.

        Afterwards, `initialized` has the names of the parameters that are not in that file.

        Args:
            init: `torch` for torchvision's initialization. Other values apply to convolutions and dense layers.
            generator: CPU generator that draws the weights.

        Raises:
            RecipeError: The file does not fit the network.
        """
        layer = self._layer
        self.network = build_network(layer.name, self._input_shape, layer.n_classes, generator)
        if init != "torch":
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    initialize_layer(module, init, generator)
        if layer.weights is not None:
            self.initialized = load_weights(self.network, layer.weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of (N, C, H, W)."""
        is_bf16 = images.dtype == torch.bfloat16
        # A CUDA graph must not use a cache of converted weights. Each weight is used once, so a cache saves no time.
        precision = (
            torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False) if is_bf16 else nullcontext()
        )
        with precision:
            logits: Tensor = self.network(images)
        return logits

    def fold(self) -> None:
        """Make prediction faster: fold batch norm into convolutions. Also keep the classifier in float32.

        The network must be in evaluation mode, and cannot be trained afterwards. Measured on a CPU in fp32 at 28×28
        pixels, folding saves 25 % of the time of efficientnet_b0, 18 % of mobilenet_v3_small and 4 % of resnet18.
        """
        from torch.fx.experimental.optimization import fuse

        name, _ = find_classifier(self.network)
        if any(isinstance(module, nn.BatchNorm2d) for module in self.network.modules()):
            self.network = fuse(self.network, inplace=True)
        self.network.set_submodule(name, _Float32Layer(self.network.get_submodule(name)))


class _Float32Layer(nn.Module):
    """Run a layer in float32, also within `torch.autocast`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            outputs: Tensor = self.layer(inputs.float())
        return outputs


@cache
def measure_backbone(layer: layers.Backbone, input_shape: Shape, n_classes: int) -> tuple[int, int]:
    """Return the number of parameters, and of multiply-adds for one image. No memory for weights is allocated.

    Raises:
        RecipeError: There is no such network, or it cannot take images of this shape.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        check_name(layer.name)
    except ValueError as error:
        raise RecipeError("impossible network", problems=[f"name: {error}"]) from error
    try:
        network = build_on_meta(layer.name, input_shape, n_classes).to("meta").eval()
        # With gradients, attention does not use PyTorch's fused kernel, which the counter does not know.
        with FlopCounterMode(display=False) as counter, torch.enable_grad():
            network(torch.empty(1, *input_shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        size, reason = show_shape(input_shape[1:]), str(error).partition("\n")[0].rstrip(".")
        problem = (
            f"{layer.name} cannot take images of {size} pixels ({reason}); choose another network, or another size: "
            "folder:DIR resizes images to data.size"
        )
        raise RecipeError("impossible network", problems=[f"name: {problem}"]) from error
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2
