"""The streams of random numbers that a training draws from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GO_ON = ("order", "augment", "dropout")  # the others are drawn from once, before the first step


@dataclass(frozen=True, slots=True)
class Generators:
    """The five streams of random numbers of a member, each from the recipe's seed and the member's index.

    Args:
        weights: On the CPU.
        order: On the CPU.
        augment: On the device.
        dropout: On the device.
        sample: On the CPU; of `trainer.bagging`.
    """

    weights: torch.Generator
    order: torch.Generator
    augment: torch.Generator
    dropout: torch.Generator
    sample: torch.Generator

    @classmethod
    def seeded(cls, seed: int, index: int, device: torch.device, *, retrained: bool = False) -> "Generators":
        """Return new generators: members differ by their index in the recipe, a training afresh from the first."""
        seeds = np.random.SeedSequence([seed, index], spawn_key=(1,) if retrained else ()).generate_state(5, np.uint64)
        cpu = torch.device("cpu")
        devices = (cpu, cpu, device, device, cpu)
        return cls(*(torch.Generator(where).manual_seed(int(s)) for s, where in zip(seeds, devices, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """Return the states of those that go on drawing."""
        return {f"generator.{name}": getattr(self, name).get_state() for name in _GO_ON}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over states."""
        for name in _GO_ON:
            getattr(self, name).set_state(tensors[f"generator.{name}"])
