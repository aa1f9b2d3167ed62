"""The values that a recipe holds, but for its networks and their training. Every default is written here, once.

Each class is one TOML table: frozen, strictly typed, and closed to unknown keys.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fmcli.choices import TieRule, VotingRule
from fmcli.errors import did_you_mean
from fmcli.recipe.families import ModelSpec
from fmcli.recipe.known import KNOWN_SOURCES, SOURCE_PREFIXES
from fmcli.recipe.spec import Fraction, Positive, Probability, Seed, Spec
from fmcli.recipe.training import AdamSpec, ConstantSchedule, OptimizerSpec, ScheduleSpec, TrainerSpec

# --- [data] ---------------------------------------------------------------------------------------------


class FirstImages(Spec):
    """Validate on the first n training images."""

    first: Positive
    """How many of the first training images are set aside for validation."""


class RandomFraction(Spec):
    """Validate on a seeded random part of the training images."""

    fraction: Fraction
    """The part of the training images that is set aside for validation."""
    seed: Seed = 0
    stratify: bool = False
    """Take the same part of every class."""


class OwnValidation(Spec):
    """Validate on the source's own set: a folder `validation`, `validation-images-idx3-ubyte`, `val_images`."""

    own: Literal[True]


VALIDATION_KINDS = ("first", "fraction", "own")
"""The keys that say in which of its ways `data.validation` sets images aside."""


def _validation_kind(value: Any) -> str | None:
    for key in VALIDATION_KINDS:
        if key in value if isinstance(value, dict) else hasattr(value, key):
            return key
    return None


Validation = Annotated[
    Annotated[FirstImages, Tag("first")]
    | Annotated[RandomFraction, Tag("fraction")]
    | Annotated[OwnValidation, Tag("own")],
    Discriminator(_validation_kind),
]


class Resplit(Spec):
    """Shuffle training and test images together and split them afresh; the rest becomes the test set."""

    train: Fraction
    """The part of all images to train on."""
    validation: Probability
    """The part of all images to validate on."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _leave_a_test_set(self) -> "Resplit":
        if self.train + self.validation >= 1:
            raise ValueError("train and validation together must leave a part for the test set (below 1)")
        return self


class PixelScale(Spec):
    """Network input is (pixel / divide_by - mean) / std."""

    divide_by: Annotated[float, Field(gt=0)] = 255.0
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0


_FOLDER_KEYS = ("size", "channels")


class DataSpec(Spec):
    """Where the images come from and how they are split."""

    source: Annotated[str, Field(min_length=1)]
    """`fashion-mnist`; `folder:DIR` for pictures in a folder for each class; `idx:DIR`; or `npz:FILE`."""
    size: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    """Of `folder:`, height and width that pictures are fitted to; by default their own, if they have one in common."""
    channels: Literal[1, 3] | None = None
    """Of `folder:`, 1 for grey or 3 for colour; by default grey where all pictures are."""
    validation: Validation | None = None
    """What to validate on; without it nothing is set aside."""
    resplit: Resplit | None = None
    """Mix training and test images and split them afresh, instead of `validation`."""
    classes: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    """Class names in label order; by default the source's own."""
    normalize: Literal["standard", "unit", "symmetric"] | PixelScale = "standard"
    """`standard`: zero mean, unit variance over the training images; `unit`: [0, 1]; `symmetric`: [-1, 1]."""
    normalize_test: PixelScale | None = None
    """Scale test images in another way than the network was trained with: only to repeat a report that did."""

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        kind, colon, place = source.partition(":")
        if source not in KNOWN_SOURCES and not (colon and place and kind in SOURCE_PREFIXES):
            choices = [*KNOWN_SOURCES, *(f"{prefix}:{what}" for prefix, what in SOURCE_PREFIXES.items())]
            raise ValueError(f"got {source!r}; {did_you_mean(source, choices)}")
        return source

    @model_validator(mode="after")
    def _check_folder_keys(self) -> "DataSpec":
        given = [name for name in _FOLDER_KEYS if getattr(self, name) is not None]
        if given and not self.source.startswith("folder:"):
            raise ValueError(f"{given[0]} is for source = 'folder:DIR'; of {self.source!r} it is fixed")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Recipes of before there was such a field keep their digests.
        return {name: value for name, value in dump(self).items() if value is not None or name not in _FOLDER_KEYS}

    @property
    def validates(self) -> bool:
        """Whether images are set aside for validation."""
        return self.validation is not None or (self.resplit is not None and self.resplit.validation > 0)

    @model_validator(mode="after")
    def _split_once(self) -> "DataSpec":
        if self.validation is not None and self.resplit is not None:
            raise ValueError("give either validation or resplit, not both")
        return self


# --- [augment] ------------------------------------------------------------------------------------------


class AlbumentationsSpec(Spec):
    """One albumentations transform by its class name, with its arguments."""

    name: str
    """A transform of albumentations, e.g. `ElasticTransform`, or `OneOf`, `SomeOf`, `Sequential`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments, `p` among them."""
    transforms: Annotated[tuple["AlbumentationsSpec", ...], Field(strict=False)] = ()
    """For `OneOf` and its like: the transforms to choose from."""


class AugmentSpec(Spec):
    """What is done to training images: a fresh draw for each image, each time it is seen."""

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, uniform in ± this."""
    translate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest translation as a fraction of each side, uniform in ± this."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in whole pixels, uniform in ± this, each way."""
    flip: Probability = 0.0
    """Probability of a horizontal flip."""
    erase: Probability = 0.0
    """Probability that a random rectangle is filled with noise."""
    erase_area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.02, 0.33)
    """Smallest and largest part of the image to erase; less where the rectangle is longer than a side of it."""
    albumentations: Annotated[tuple[AlbumentationsSpec, ...], Field(strict=False)] = ()
    """A pipeline for worker processes on the host, before everything else here."""

    @model_validator(mode="after")
    def _area_in_order(self) -> "AugmentSpec":
        if self.erase_area[0] > self.erase_area[1]:
            raise ValueError("erase_area must be [smallest, largest]")
        return self


# --- [ensemble], [reference], [search], [[members]] ---------------------------------------------------------------


class EnsembleSpec(Spec):
    """How the members' answers become one."""

    vote: VotingRule = "majority"
    """How members' answers become one; `--vote` of the ensemble commands takes its place."""
    tie: TieRule = "probability"
    """Which tied class wins: the highest mean probability, the lowest label, or the first member's choice."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """How much members count, by name; those that are not named count 1."""


class ReferenceSpec(Spec):
    """Published figures, in [0, 1], shown beside what was measured."""

    source: str
    train_accuracy: Probability | None = None
    validation_accuracy: Probability | None = None
    test_accuracy: Probability | None = None
    test_recall: dict[str, Probability] = Field(default_factory=dict)
    """Of single classes, by name."""


_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
_ROUNDING = 1e-6  # 0.05 goes ten times into 0.5, but for floating point


class ChoiceSpace(Spec):
    """One of some values."""

    choice: Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]
    """What to choose from, equally likely."""


class RangeSpace(Spec):
    """A number between two: whole where both ends are, as in `{ low = 16, high = 128, step = 16 }`."""

    low: _Number
    high: _Number
    """Included."""
    step: Annotated[int, Field(gt=0, lt=2**63)] | Annotated[float, Field(gt=0)] | None = None
    """By default 1 between whole numbers, and none between others."""
    log: bool = False
    """Draw the logarithm uniformly instead of the number."""

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are meant."""
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
            raise ValueError(f"step is {self.step:g} between whole numbers; write low = {self.low}.0 for others")
        steps = (self.high - self.low) / (self.step or 1)
        if not math.isfinite(steps):
            raise ValueError(f"the range is too wide: from {self.low:g} to {self.high:g}")
        if self.step is not None and abs(steps - round(steps)) > _ROUNDING:
            raise ValueError(f"steps of {self.step:g} from {self.low:g} do not reach {self.high:g}")
        return self


def _space_kind(value: Any) -> str | None:
    for key in ("choice", "low"):
        if key in value if isinstance(value, dict) else hasattr(value, key):
            return key
    return None


Space = Annotated[Annotated[ChoiceSpace, Tag("choice")] | Annotated[RangeSpace, Tag("low")], Discriminator(_space_kind)]


class SearchSpec(Spec):
    """What `fmcli search` varies.

    Each training keeps its best epoch, whatever `trainer.keep` is, without patience; with `trainer.swa`, the average.
    """

    trials: Positive = 20
    """How many sets of values are tried."""
    trainings: Positive = 1
    """How often each set is trained, with seeds of its own; its score is the mean."""
    epochs: Positive | None = None
    """Of each training; by default the trainer's."""
    sampler: Literal["random", "tpe"] = "random"
    """`tpe`: tree-structured Parzen estimator (Bergstra et al. 2011), which learns from the trials before."""
    pruner: Literal["none", "median", "halving"] = "none"
    """Stop a trial early that is worse than the median of the others, or by successive halving (Li et al. 2018)."""
    seed: Seed = 0
    """What is drawn comes from this seed and the trial's number."""
    space: Annotated[dict[str, Space], Field(min_length=1)]
    """Values of the recipe, such as "optimizer.lr" or "model.layers[0].filters", and what to draw for each."""


_LONGEST_NAME = 64  # letters
MAX_MEMBERS = 1000


class MemberSpec(Spec):
    """Everything about one member: the shared tables with its own laid over them."""

    name: Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}$")]
    """Letters, digits, `_`, `.`, `-`: it names the member's folder."""
    model: ModelSpec
    augment: AugmentSpec = Field(default_factory=AugmentSpec)
    optimizer: OptimizerSpec = Field(default_factory=AdamSpec)
    schedule: ScheduleSpec = Field(default_factory=ConstantSchedule)
    trainer: TrainerSpec = Field(default_factory=TrainerSpec)

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == "vote":
            raise ValueError("got 'vote', which is what the members' vote is called; choose another name")
        if name.lower() == "last-good":
            raise ValueError(f"got {name!r}, which is where a member that diverges leaves weights; choose another name")
        if re.fullmatch(r"snapshot(-\d+)?", name, re.IGNORECASE):
            raise ValueError(f"got {name!r}, which is what a member's snapshots are called; choose another name")
        return name


class MemberTable(MemberSpec):
    """A `[[members]]` table with the shared ones laid under it: a member, or several that are alike."""

    copies: Annotated[int, Field(gt=0, le=MAX_MEMBERS)] = 1
    """How many members, alike but for their random numbers: with 3 copies, `k3` is `k3-1`, `k3-2` and `k3-3`."""

    @field_validator("copies")
    @classmethod
    def _copies_can_be_named(cls, copies: int, given: ValidationInfo) -> int:
        last = name_copies(given.data.get("name", ""), copies)[-1]
        if len(last) > _LONGEST_NAME:
            raise ValueError(f"got {copies}; the last would be called {last!r}, longer than {_LONGEST_NAME} letters")
        return copies

    def expand(self) -> list[MemberSpec]:
        """Return the members that the table stands for."""
        values = {key: getattr(self, key) for key in MemberSpec.model_fields}
        return [MemberSpec(**{**values, "name": name}) for name in name_copies(self.name, self.copies)]


def name_copies(name: str, copies: int) -> list[str]:
    """Return what the copies of a member are called.

    Example:
        >>> name_copies("k3", 1), name_copies("k3", 2)
        (['k3'], ['k3-1', 'k3-2'])
    """
    return [name] if copies == 1 else [f"{name}-{copy}" for copy in range(1, copies + 1)]


class Recipe(Spec):
    """Everything about a run, resolved: one `MemberSpec` for each network."""

    name: str
    description: str
    data: DataSpec
    members: tuple[MemberSpec, ...]
    ensemble: EnsembleSpec = Field(default_factory=EnsembleSpec)
    reference: ReferenceSpec | None = None
    search: SearchSpec | None = None


SHARED_TABLES = ("model", "augment", "optimizer", "schedule", "trainer")
"""The tables that every member starts from and may override."""
