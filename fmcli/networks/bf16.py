"""Mixed precision: multiply in bfloat16, update weights in float32."""

import copy

import torch
from torch import Tensor, nn

from fmcli.networks.backbone import Backbone
from fmcli.networks.blocks import has_products, walk_modules
from fmcli.networks.cpu.pooling import ConvPoolReLU


class Bf16Twin:
    """A copy of a network whose convolutions and dense layers multiply in bfloat16.

    Results equal `torch.autocast` bit for bit, with less work per step: one call converts all weights and
    one call all gradients, while autocast converts each one separately and again in the backward pass. There are two
    exceptions: `ConvPoolReLU`, which replaces the first layers if it fits, chooses maxima before rounding, and
    `StridedConv2d` sums the gradients of its weights in a different order.

    Args:
        model: The network to train, in float32. The twin shares its batch norm layers, its layers without weights, and
            backbones, which keep float32 weights and multiply under `torch.autocast`.

    References:
        Micikevicius et al., "Mixed precision training", ICLR 2018: the optimizer updates a float32 copy of the weights.
    """

    def __init__(self, model: nn.Sequential) -> None:
        # `deepcopy` returns the modules in `memo` as they are, so the copy shares them at any depth.
        shared = {id(module): module for module in walk_modules(model) if not _contains_products(module)}
        twin = copy.deepcopy(model, memo=shared)
        pairs = [
            (layer, copied.to(torch.bfloat16))
            for layer, copied in zip(walk_modules(model), walk_modules(twin), strict=True)
            if has_products(layer)
        ]
        layers = list(twin)
        first = next((index for index, layer in enumerate(layers) if _multiplies(layer)), len(layers))
        trained = layers[first:]
        if ConvPoolReLU.fits(trained[:3]):
            trained = [ConvPoolReLU(*trained[:3]), *trained[3:]]
        self._before, self._network = nn.Sequential(*layers[:first]), nn.Sequential(*trained)
        self._weights: list[Tensor] = [weight for layer, _ in pairs for weight in layer.parameters()]
        self._twins: list[Tensor] = [weight for _, copied in pairs for weight in copied.parameters()]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits in bfloat16, computed with the network's current weights."""
        if self._twins:
            with torch.no_grad():
                torch._foreach_copy_(self._twins, self._weights)
        for twin in self._twins:
            twin.grad = None
        logits: Tensor = self._network(self._before(inputs).to(torch.bfloat16))
        return logits

    def collect_gradients(self) -> None:
        """Copy the twin's gradients to the network. Call after `backward`."""
        if gradients := [twin.grad for twin in self._twins if twin.grad is not None]:
            torch._foreach_copy_(self._gradients, gradients)
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient


def _contains_products(module: nn.Module) -> bool:
    return any(map(has_products, walk_modules(module)))


def _multiplies(layer: nn.Module) -> bool:
    """Return whether a layer multiplies in bfloat16, so that its input must be converted."""
    return any(has_products(module) or isinstance(module, Backbone) for module in walk_modules(layer))
