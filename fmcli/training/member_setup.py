"""Everything that stays the same while a member is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.data import Splits
from fmcli.events import Reporter
from fmcli.recipe import MemberSpec, Recipe
from fmcli.recipe.tracing import LayerTrace
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.learner import Learner
from fmcli.training.loaders import Loaders, build_loaders
from fmcli.training.optim import Schedule, build_schedule
from fmcli.training.rng import Generators


@dataclass(frozen=True, slots=True)
class MemberSetup:
    """Everything that stays the same while a member is trained.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
        splits: The images.
        traces: The layers of the member's network.
        folder: The member's folder.
        device: The training device.
        fingerprint: Fingerprint of the member.
        loaders: The images that the member is trained and validated on.
        schedule: The learning rate of each step.
        reporter: Receives events.
    """

    spec: MemberSpec
    recipe: Recipe
    splits: Splits
    traces: Sequence[LayerTrace]
    folder: Path
    device: torch.device
    fingerprint: Fingerprint
    loaders: Loaders
    schedule: Schedule
    reporter: Reporter

    @classmethod
    def build(
        cls,
        spec: MemberSpec,
        recipe: Recipe,
        splits: Splits,
        traces: Sequence[LayerTrace],
        folder: Path,
        device: torch.device,
        fingerprint: Fingerprint,
        reporter: Reporter,
    ) -> "MemberSetup":
        """Load the member's images to the device, and compute its schedule."""
        sample = Generators.seeded(spec.trainer.seed, recipe.members.index(spec), device).sample
        loaders = build_loaders(spec, recipe, splits, device, sample)
        schedule = build_schedule(
            spec.schedule, lr=spec.optimizer.lr, epochs=spec.trainer.epochs, steps_per_epoch=len(loaders.train)
        )
        return cls(spec, recipe, splits, traces, folder, device, fingerprint, loaders, schedule, reporter)

    @property
    def bf16(self) -> bool:
        """Whether the network multiplies in bfloat16."""
        return self.fingerprint.precision == "bf16"

    def build_learner(self, *, retrained: bool = False) -> Learner:
        """Build a new network and its optimizer.

        Args:
            retrained: Draw different weights, because the member is trained a second time.
        """
        seed, index = self.spec.trainer.seed, self.recipe.members.index(self.spec)
        return Learner(
            self.spec,
            self.traces,
            normalization=self.loaders.normalization,
            generators=Generators.seeded(seed, index, self.device, retrained=retrained),
            device=self.device,
            bf16=self.bf16,
        )
