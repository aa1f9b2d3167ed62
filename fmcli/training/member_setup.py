"""Everything that stays the same while a member is trained."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fmcli.data import Splits
from fmcli.events import Reporter
from fmcli.recipe import MemberSpec, Recipe
from fmcli.recipe.tracing import LayerTrace
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.learner import Learner
from fmcli.training.loaders import build_loaders
from fmcli.training.optim import build_schedule
from fmcli.training.rng import Generators


class MemberSetup:
    """Everything that stays the same while a member is trained: the arguments, the image loaders and the schedule.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
        splits: The images.
        folder: The member's folder.
        traces: The layers of the member's network.
        device: The training device.
        fingerprint: Fingerprint of the member.
        reporter: Receives events.
    """

    def __init__(
        self,
        spec: MemberSpec,
        recipe: Recipe,
        splits: Splits,
        folder: Path,
        *,
        traces: Sequence[LayerTrace],
        device: torch.device,
        fingerprint: Fingerprint,
        reporter: Reporter,
    ) -> None:
        self.spec, self.recipe, self.splits, self.folder = spec, recipe, splits, folder
        self.traces, self.device, self.fingerprint, self.reporter = traces, device, fingerprint, reporter
        self.index = recipe.members.index(spec)
        self.bf16 = fingerprint.precision == "bf16"
        self.loaders = build_loaders(spec, recipe, splits, device, self.seed_generators().sample)
        self.steps_per_epoch = len(self.loaders.train)
        self.schedule = build_schedule(
            spec.schedule, lr=spec.optimizer.lr, epochs=spec.trainer.epochs, steps_per_epoch=self.steps_per_epoch
        )

    def seed_generators(self, *, retrained: bool = False) -> Generators:
        """Return new generators.

        Args:
            retrained: Seed them differently, because the member is trained a second time.
        """
        return Generators.seeded(self.spec.trainer.seed, self.index, self.device, retrained=retrained)

    def build_learner(self, *, retrained: bool = False) -> Learner:
        """Build a new network and its optimizer.

        Args:
            retrained: See `seed_generators`.
        """
        return Learner(
            self.spec,
            self.traces,
            normalization=self.loaders.normalization,
            generators=self.seed_generators(retrained=retrained),
            device=self.device,
            bf16=self.bf16,
        )
