"""The table `[search]`: values that `fmcli search` varies. Each default is defined only here."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from fmcli.recipe.base import PositiveFloat, PositiveInt, Seed, Spec, choose_by_key

_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
_ROUNDING_ERROR = 1e-6  # 0.5 / 0.05 is not exactly 10 in floating point


class ChoiceSpace(Spec):
    """One of several values."""

    choice: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] = Field(
        description="The values; each is drawn with the same probability."
    )


class RangeSpace(Spec):
    """A number in a range. If both ends are whole numbers, so is the number: `{ low = 16, high = 128, step = 16 }`."""

    low: _Number = Field(description="Lower end of the range, included.")
    high: _Number = Field(description="Upper end of the range, included.")
    step: Annotated[int, Field(gt=0, lt=2**63)] | PositiveFloat | None = Field(
        None, description="Distance between two values. Default: 1 for whole numbers, otherwise none."
    )
    log: bool = Field(False, description="Draw the logarithm uniformly instead of the number.")

    @property
    def is_whole(self) -> bool:
        """Whether the range contains only whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> "RangeSpace":
        if self.low > self.high:
            raise ValueError(f"the range is empty: low is {self.low:g}, above high, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("give either log or step, not both")
        if self.is_whole and isinstance(self.step, float):
            raise ValueError(f"step is {self.step:g} between whole numbers; write low = {self.low}.0 for fractions")
        steps = (self.high - self.low) / (self.step or 1)
        if not math.isfinite(steps):
            raise ValueError(f"the range is too wide: from {self.low:g} to {self.high:g}")
        if self.step is not None and abs(steps - round(steps)) > _ROUNDING_ERROR:
            raise ValueError(f"steps of {self.step:g} from {self.low:g} do not reach {self.high:g}")
        return self


Space = Annotated[
    Annotated[ChoiceSpace, Tag("choice")] | Annotated[RangeSpace, Tag("low")], choose_by_key("choice", "low")
]


class SearchSpec(Spec):
    """The values that `fmcli search` varies.

    Every training run keeps its best epoch, or the average if `trainer.swa` is set. It ignores `trainer.keep` and
    `trainer.patience`.
    """

    trials: PositiveInt = Field(20, description="Number of trials. Each trains the recipe with other values.")
    trainings: PositiveInt = Field(
        1, description="Training runs per trial, each with another seed. The trial's score is their mean."
    )
    epochs: PositiveInt | None = Field(None, description="Epochs per training run. Default: `trainer.epochs`.")
    sampler: Literal["random", "tpe"] = Field(
        "random",
        description="How values are drawn. `tpe`: with the tree-structured Parzen estimator (Bergstra et al. 2011), "
        "which learns from earlier trials.",
    )
    pruner: Literal["none", "median", "halving"] = Field(
        "none",
        description="When a trial is stopped early. `median`: if it is worse than the median of earlier trials. "
        "`halving`: by successive halving (Li et al. 2018).",
    )
    seed: Seed = Field(0, description="Seed of the drawn values; each trial combines it with the trial's number.")
    space: Annotated[dict[str, Space], Field(min_length=1)] = Field(
        description='Values to draw for each path in the recipe, such as "optimizer.lr" or "model.layers[0].filters".'
    )
