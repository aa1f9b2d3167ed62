"""Stop a member whose loss, weights or logits are no longer finite."""

import math

from fmcli.errors import DivergedError, Remedy
from fmcli.recipe import MemberSpec, Recipe
from fmcli.training.member_setup import MemberSetup
from fmcli.training.state import EpochProgress


class DivergenceGuard:
    """Raises an error when a loss, weight or logit of a member is not finite.

    Args:
        setup: The member.
    """

    def __init__(self, setup: MemberSetup) -> None:
        self._setup = setup

    def check(self, quantity: str, value: float, *, steps: int) -> None:
        """Refuse a value that is not finite.

        Args:
            quantity: Name of the quantity, such as `validation loss`.
            value: The value.
            steps: Number of steps after which it was measured, counted over all epochs.

        Raises:
            DivergedError: The value is infinite or NaN.
        """
        if math.isfinite(value):
            return
        spec, step = self._setup.spec, max(steps - 1, 0)
        epoch, lr = step // self._setup.steps_per_epoch + 1, self._setup.schedule(step)
        raise DivergedError(
            f"member {spec.name}: the {quantity} is {value} in epoch {epoch} at learning rate {lr:.3g}",
            hint=f"try a lower {_learning_rate_key(spec, self._setup.recipe)}",
            remedies=[Remedy("train-member", spec.name)],
        )

    def check_losses(self, epoch: int, progress: EpochProgress) -> None:
        """Refuse an epoch if the loss of a step is not finite.

        Args:
            epoch: Index of the epoch, from 0.
            progress: The steps of the epoch.

        Raises:
            DivergedError: A loss is infinite or NaN. The error names the first such step.
        """
        for step in (~progress.losses[: progress.steps].isfinite()).nonzero().flatten().tolist():
            steps = epoch * self._setup.steps_per_epoch + step + 1
            self.check(f"loss of step {step + 1}", float(progress.losses[step]), steps=steps)


def _learning_rate_key(spec: MemberSpec, recipe: Recipe) -> str:
    """Return the recipe key of a member's learning rate. Copies of a member share the table of its base name."""
    if all(member.optimizer == spec.optimizer for member in recipe.members):
        return "optimizer.lr"
    base, _, number = spec.name.rpartition("-")
    is_copy = number.isdigit() and {f"{base}-1", f"{base}-2"} <= {member.name for member in recipe.members}
    return f"members.{base if is_copy else spec.name}.optimizer.lr"
