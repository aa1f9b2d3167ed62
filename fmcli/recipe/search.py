"""The table `[search]`: values that `fmcli search` varies. Each default is defined only here."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from fmcli.recipe.base import PositiveFloat, PositiveInt, Seed, Spec, choose_by_key

_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(ge=-1e300, le=1e300)]
_ROUNDING_ERROR = 1e-6  # 0.5 / 0.05 is not exactly 10 in floating point


class ChoiceSpace(Spec):
    """A choice from a list of values."""

    choice: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)] = Field(
        description='Values to choose from. With `sampler = "random"`, each value has the same probability.'
    )


class RangeSpace(Spec):
    """A number from a range. If `low` and `high` are whole numbers, only whole numbers are drawn."""

    low: _Number = Field(description="Smallest value.")
    high: _Number = Field(description="Largest value.")
    step: Annotated[int, Field(gt=0, lt=2**63)] | PositiveFloat | None = Field(
        None, description="Distance between neighbouring values. Default: 1 for whole numbers, otherwise none."
    )
    log: bool = Field(False, description="Draw the logarithm of the number uniformly, instead of the number.")

    @property
    def is_whole(self) -> bool:
        """Whether the range contains only whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> "RangeSpace":
        if self.low > self.high:
            raise ValueError(f"low must not be above high; got low = {self.low:g} and high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs a low above 0; got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("give either log or step, not both")
        if self.is_whole and isinstance(self.step, float):
            raise ValueError(
                f"step must be a whole number, because low and high are whole numbers; got {self.step:g}; to draw "
                f"fractions, write low = {self.low}.0"
            )
        if self.step and abs(math.remainder(self.high - self.low, self.step)) > _ROUNDING_ERROR * self.step:
            raise ValueError(
                f"high - low must be a multiple of step; got low = {self.low:g}, high = {self.high:g} and "
                f"step = {self.step:g}"
            )
        return self


Space = Annotated[
    Annotated[ChoiceSpace, Tag("ChoiceSpace")] | Annotated[RangeSpace, Tag("RangeSpace")],
    choose_by_key(ChoiceSpace, RangeSpace),
]


class SearchSpec(Spec):
    """The values that `fmcli search` varies.

    Each training run is scored at the best epoch, or with the averaged weights if `trainer.swa` is set. `trainer.keep`
    and `trainer.patience` are ignored.
    """

    trials: PositiveInt = Field(20, description="Number of trials. Each trial trains the recipe with different values.")
    trainings: PositiveInt = Field(
        1, description="Number of training runs per trial, each with a different seed. Their scores are averaged."
    )
    epochs: PositiveInt | None = Field(
        None, description="Number of epochs per training run. Default: `trainer.epochs`."
    )
    sampler: Literal["random", "tpe"] = Field(
        "random",
        description="How values are drawn. `random`: independently. `tpe`: near the best earlier values, with the "
        "tree-structured Parzen estimator (Bergstra et al. 2011).",
    )
    pruner: Literal["none", "median", "halving"] = Field(
        "none",
        description="When a trial is stopped early. `none`: never. `median`: if its best score so far is worse than "
        "the median score of earlier trials at the same epoch. `halving`: by successive halving (Li et al. 2018). "
        "`median` and `halving` need a recipe with one member.",
    )
    seed: Seed = Field(0, description="Seed of the drawn values. Each trial combines it with the number of the trial.")
    space: Annotated[dict[str, Space], Field(min_length=1)] = Field(
        description='Values to draw from, by path in the recipe: "optimizer.lr" = { low = 1e-4, high = 0.01 }.'
    )
