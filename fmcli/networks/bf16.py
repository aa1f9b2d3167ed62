"""Mixed precision: multiply in bfloat16, update weights in float32."""

import copy

import torch
from torch import Tensor, nn

from fmcli.networks.cpu.pooling import ConvPoolReLU


class Bf16Twin:
    """A copy of a network whose convolutions and dense layers multiply in bfloat16.

    Results equal `torch.autocast` bit for bit, with less work per step: one call converts all weights and
    one call all gradients, while autocast converts each one separately and again in the backward pass. There are two
    exceptions: `ConvPoolReLU`, which replaces the first layers if it fits, chooses maxima before rounding, and
    `StridedConv2d` sums the gradients of its weights in a different order.

    Args:
        model: The network to train, in float32. The twin shares its layers without weights and its batch norm layers.

    References:
        Micikevicius et al., "Mixed precision training", ICLR 2018: the optimizer updates a float32 copy of the weights.
    """

    def __init__(self, model: nn.Sequential) -> None:
        layers = [copy.deepcopy(layer).to(torch.bfloat16) if _has_products(layer) else layer for layer in model]
        first = next((index for index, layer in enumerate(model) if _has_products(layer)), len(layers))
        trained = layers[first:]
        if ConvPoolReLU.fits(trained[:3]):
            trained = [ConvPoolReLU(*trained[:3]), *trained[3:]]
        self._before, self._network = nn.Sequential(*layers[:first]), nn.Sequential(*trained)
        pairs = [(layer, twin) for layer, twin in zip(model, layers, strict=True) if layer is not twin]
        self._weights: list[Tensor] = [weight for layer, _ in pairs for weight in layer.parameters()]
        self._twins: list[Tensor] = [weight for _, twin in pairs for weight in twin.parameters()]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits in bfloat16, computed with the network's current weights."""
        with torch.no_grad():
            torch._foreach_copy_(self._twins, self._weights)
        for twin in self._twins:
            twin.grad = None
        logits: Tensor = self._network(self._before(inputs).to(torch.bfloat16))
        return logits

    def collect_gradients(self) -> None:
        """Copy the twin's gradients to the network. Call after `backward`."""
        gradients = [twin.grad for twin in self._twins if twin.grad is not None]
        torch._foreach_copy_(self._gradients, gradients)
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient


def _has_products(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)
