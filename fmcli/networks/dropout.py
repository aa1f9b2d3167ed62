"""Dropout and stochastic depth, which draw from a generator of the member, so that a run can be resumed exactly."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Inverted dropout with its own generator, so that a run can be resumed exactly.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, JMLR 2014.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """In training, set random inputs to zero and scale up the rest."""
        if not self.training or self.rate == 0:
            return inputs
        dropped = min(round(self.rate * 2**16), 2**16 - 1)  # out of 65,536 values; at least one is kept
        keep = draw_random_bits(inputs, self.generator).ge_(dropped - 2**15).to(inputs.dtype)
        return inputs * keep.mul_(1 / (1 - self.rate))


class StochasticDepth(nn.Module):
    """Set the output of a residual body to zero for random images during training, and scale up the remaining ones.

    References:
        Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def forward(self, outputs: Tensor) -> Tensor:
        """In training, skip the body for random images of a batch (N, …)."""
        if not self.training or self.probability == 0:
            return outputs
        draws = torch.rand(len(outputs), *[1] * (outputs.ndim - 1), generator=self.generator, device=outputs.device)
        keep = (draws >= self.probability).to(outputs.dtype)
        return outputs * keep.mul_(1 / (1 - self.probability))


def draw_random_bits(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw 16 random bits for each element of a tensor.

    One draw of 64 bits serves four elements. On a CPU, one draw per element takes longer than a small convolution.

    Returns:
        int16, uniform over its range, with the shape and strides of `like`.
    """
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:count].as_strided(like.size(), like.stride())


def set_dropout_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Make dropout and stochastic depth draw from one generator, which must be on the network's device."""
    for module in model.modules():
        if isinstance(module, Dropout | StochasticDepth):
            module.generator = generator
