"""The random number generators with which a member is trained."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SAVED = ("order", "augment", "dropout")  # the other generators are used only before the first step


@dataclass(frozen=True, slots=True)
class Generators:
    """A member's five generators, seeded from the recipe's seed and the member's index.

    Args:
        weights: Initial weights, on the CPU.
        order: Order of the images in each epoch, on the CPU.
        augment: Augmentation, on the device.
        dropout: Dropout, on the device.
        sample: Bootstrap sample of `trainer.bagging`, on the CPU.
    """

    weights: torch.Generator
    order: torch.Generator
    augment: torch.Generator
    dropout: torch.Generator
    sample: torch.Generator

    @classmethod
    def seeded(cls, seed: int, index: int, device: torch.device, *, retrained: bool = False) -> "Generators":
        """Return new generators.

        Args:
            seed: The recipe's seed.
            index: Index of the member in the recipe. Members with different indices get different numbers.
            device: The training device.
            retrained: Seed them differently, because the same member is trained a second time.
        """
        seeds = np.random.SeedSequence([seed, index], spawn_key=(1,) if retrained else ()).generate_state(5, np.uint64)
        cpu = torch.device("cpu")
        devices = (cpu, cpu, device, device, cpu)
        return cls(*(torch.Generator(where).manual_seed(int(s)) for s, where in zip(seeds, devices, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """Return the states of the generators that are used during training, for `load`."""
        return {f"generator.{name}": getattr(self, name).get_state() for name in _SAVED}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the states that `state` returned."""
        for name in _SAVED:
            getattr(self, name).set_state(tensors[f"generator.{name}"])
