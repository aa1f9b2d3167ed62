"""Stop a member whose loss, weights or logits are no longer finite."""

import math

from fmcli.errors import DivergedError, Remedy
from fmcli.recipe import MemberSpec, Recipe


class DivergenceGuard:
    """Raises an error when a loss, weight or logit of a member is not finite.

    Args:
        spec: The member's recipe.
        recipe: The whole recipe.
    """

    def __init__(self, spec: MemberSpec, recipe: Recipe) -> None:
        self._name = spec.name
        self._lr_key = _learning_rate_key(spec, recipe)

    def check(self, quantity: str, value: float, *, epoch: int, lr: float) -> None:
        """Refuse a value that is not finite.

        Args:
            quantity: Name of the quantity, such as `validation loss`.
            value: The value.
            epoch: Index of the epoch, from 0.
            lr: Learning rate of the last step.

        Raises:
            DivergedError: The value is infinite or NaN.
        """
        if not math.isfinite(value):
            raise DivergedError(
                f"member {self._name}: the {quantity} is {value} in epoch {epoch + 1} at learning rate {lr:.3g}",
                hint=f"try a lower {self._lr_key}",
                remedies=[Remedy("train-member", self._name)],
            )


def _learning_rate_key(spec: MemberSpec, recipe: Recipe) -> str:
    """Return the recipe key of a member's learning rate. Copies of a member share the table of its base name."""
    if all(member.optimizer == spec.optimizer for member in recipe.members):
        return "optimizer.lr"
    base, _, number = spec.name.rpartition("-")
    is_copy = number.isdigit() and {f"{base}-1", f"{base}-2"} <= {member.name for member in recipe.members}
    return f"members.{base if is_copy else spec.name}.optimizer.lr"
