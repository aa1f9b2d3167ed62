"""Multiplying in bfloat16 while learning in float32."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmcli.networks.cpu.pooling import ConvPoolReLU


class Bf16Twin:
    """A network's twin, whose convolutions and dense layers multiply in bfloat16.

    The numbers are those of `torch.autocast`, to the last bit, for less work each step: all weights are converted in
    one call and all gradients in another, where autocast converts each by itself and again on the way back. Only
    `ConvPoolReLU`, which takes the place of the first layers where it can, chooses maxima before it rounds, and
    `StridedConv2d` adds the gradients of its weights up in another order.

    Args:
        model: The network that learns, in float32; its other layers serve both.

    References:
        Micikevicius et al., "Mixed precision training", ICLR 2018: a float32 copy of the weights is what learns.
    """

    def __init__(self, model: nn.Sequential) -> None:
        layers = [copy.deepcopy(layer).to(torch.bfloat16) if _multiplies(layer) else layer for layer in model]
        first = next((place for place, layer in enumerate(model) if _multiplies(layer)), len(layers))
        self._before, self._network = nn.Sequential(*layers[:first]), nn.Sequential(*_fuse(layers[first:]))
        pairs = [(layer, twin) for layer, twin in zip(model, layers, strict=True) if layer is not twin]
        self._weights: list[Tensor] = [weight for layer, _ in pairs for weight in layer.parameters()]
        self._twins: list[Tensor] = [weight for _, twin in pairs for weight in twin.parameters()]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits in bfloat16, by the weights as they are now."""
        with torch.no_grad():
            torch._foreach_copy_(self._twins, self._weights)
        for twin in self._twins:
            twin.grad = None
        logits: Tensor = self._network(self._before(inputs).to(torch.bfloat16))
        return logits

    def collect_gradients(self) -> None:
        """Give the network, after `backward`, the gradients that its twin received."""
        received = [twin.grad for twin in self._twins if twin.grad is not None]  # all of them have one
        torch._foreach_copy_(self._gradients, received)
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient


def _fuse(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Let the first three layers be one, where that is faster."""
    return [ConvPoolReLU(*layers[:3]), *layers[3:]] if ConvPoolReLU.fits(layers[:3]) else list(layers)


def _multiplies(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)
