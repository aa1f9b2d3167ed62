"""A whole recipe, its members, and the tables `[ensemble]` and `[reference]`. Each default is defined only here."""

import re
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from fmcli.choices import RuleName, TieRule
from fmcli.recipe.augment import AugmentSpec
from fmcli.recipe.base import NonNegativeFloat, Probability, Spec
from fmcli.recipe.data import DataSpec
from fmcli.recipe.families import ModelSpec
from fmcli.recipe.optimizer import AdamSpec, OptimizerSpec
from fmcli.recipe.schedule import ConstantSchedule, ScheduleSpec
from fmcli.recipe.search import SearchSpec
from fmcli.recipe.trainer import TrainerSpec

MAX_MEMBERS = 1000
MAX_NAME_LENGTH = 64
SHARED_TABLES = ("model", "augment", "optimizer", "schedule", "trainer")
"""Tables with values for every member. The tables of a member override them."""
_RESERVED_NAMES = {
    "vote": "the vote of the members",
    "(?i:last-good)": "the weights before a divergence",
    r"(?i:snapshot(-\d+)?)": "the snapshots of a member",
}


class EnsembleSpec(Spec):
    """How the predictions of the members are combined."""

    vote: RuleName = Field(
        "majority", description="Voting rule. The commands that evaluate an ensemble can override it."
    )
    tie: TieRule = Field(
        "probability",
        description="How a tie between classes is decided. `probability`: the class with the highest mean probability. "
        "`lowest`: the class with the lowest label. `first`: the first of the tied classes in the members' votes.",
    )
    weights: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="Weight of each member's vote, by member name. Default: 1 for every member."
    )


class ReferenceSpec(Spec):
    """Published scores, from 0 to 1, to compare with our scores."""

    source: str = Field(description="Author and title of the publication.")
    train_accuracy: Probability | None = Field(None, description="Published accuracy on the training images.")
    validation_accuracy: Probability | None = Field(None, description="Published accuracy on the validation images.")
    test_accuracy: Probability | None = Field(None, description="Published accuracy on the test images.")
    test_recall: dict[str, Probability] = Field(
        default_factory=dict, description="Published recall on the test images, by class name."
    )

    def accuracy_on(self, split: str) -> float | None:
        """Return the published accuracy on a split, or None if there is none."""
        accuracy: float | None = getattr(self, f"{split}_accuracy")
        return accuracy


class MemberSpec(Spec):
    """All settings of one member. The tables of the member override the shared tables."""

    name: Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME_LENGTH - 1}}}$")] = Field(
        description="Name of the member and of the folder in which it is saved: letters, digits, `_`, `.` and `-`."
    )
    model: ModelSpec
    augment: AugmentSpec = Field(default_factory=AugmentSpec)
    optimizer: OptimizerSpec = Field(default_factory=AdamSpec)
    schedule: ScheduleSpec = Field(default_factory=ConstantSchedule)
    trainer: TrainerSpec = Field(default_factory=TrainerSpec)

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        for pattern, purpose in _RESERVED_NAMES.items():
            if re.fullmatch(pattern, name):
                raise ValueError(f"got {name!r}, which is reserved for {purpose}; choose another name")
        return name


class MemberTable(MemberSpec):
    """A `[[members]]` table, merged into the shared tables: one member, or several copies."""

    copies: Annotated[int, Field(gt=0, le=MAX_MEMBERS)] = Field(
        1,
        description="Number of members with these settings and different random seeds. 3 copies of `k3` are named "
        "`k3-1`, `k3-2` and `k3-3`.",
    )

    @field_validator("copies")
    @classmethod
    def _copies_can_be_named(cls, copies: int, given: ValidationInfo) -> int:
        last = name_copies(given.data.get("name", ""), copies)[-1]
        if len(last) > MAX_NAME_LENGTH:
            raise ValueError(
                f"got {copies}; the name of the last copy, {last!r}, is longer than {MAX_NAME_LENGTH} characters"
            )
        return copies

    def expand(self) -> list[MemberSpec]:
        """Return one `MemberSpec` per copy."""
        values = {key: getattr(self, key) for key in MemberSpec.model_fields}
        return [MemberSpec(**{**values, "name": name}) for name in name_copies(self.name, self.copies)]


def name_copies(name: str, copies: int) -> list[str]:
    """Return the names of a member's copies.

    Example:
        >>> name_copies("k3", 1), name_copies("k3", 2)
        (['k3'], ['k3-1', 'k3-2'])
    """
    return [name] if copies == 1 else [f"{name}-{copy}" for copy in range(1, copies + 1)]


class Recipe(Spec):
    """All settings of a run, with every default filled in and one `MemberSpec` per member."""

    name: str
    description: str
    data: DataSpec
    members: tuple[MemberSpec, ...]
    ensemble: EnsembleSpec = Field(default_factory=EnsembleSpec)
    reference: ReferenceSpec | None = None
    search: SearchSpec | None = None
