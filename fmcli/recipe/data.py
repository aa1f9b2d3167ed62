"""The table `[data]`: where images come from and how they are split. Each default is defined only here."""

from collections import Counter
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from fmcli.choices import BUILT_IN_SOURCES, SOURCE_FORMS, SOURCES, SourceFacts, SourceKind
from fmcli.errors import did_you_mean
from fmcli.recipe.base import Fraction, PositiveFloat, PositiveInt, Probability, Seed, Spec, choose_by_key

VALIDATION_KINDS = ("first", "fraction", "own")
"""Keys of `data.validation`, which has exactly one of them."""
_SPLIT_SEED = "Seed of the random split."
_OWN_VALIDATION = "Use the separate validation images of the source."


def _forms_with(key: str) -> str:
    """Return the forms of the sources that have a key of `[data]`, such as `folder:DIR`."""
    return " or ".join(SOURCE_FORMS[prefix] for prefix, kind in SOURCES.items() if key in kind.keys)


class FirstImages(Spec):
    """Set aside the first training images for validation."""

    first: PositiveInt = Field(description="Number of training images to set aside for validation.")


class RandomFraction(Spec):
    """Set aside a random fraction of the training images for validation."""

    fraction: Fraction = Field(description="Fraction of the training images to set aside for validation.")
    seed: Seed = Field(0, description=_SPLIT_SEED)
    stratify: bool = Field(False, description="Set aside the same fraction of each class.")


class OwnValidation(Spec):
    """Use the separate validation images of the source."""

    model_config = ConfigDict(
        json_schema_extra={
            "description": f"{_OWN_VALIDATION} These are: "
            + "; ".join(
                f"of `{SOURCE_FORMS[prefix]}`, {kind.own_validation}"
                for prefix, kind in SOURCES.items()
                if kind.own_validation
            )
            + "."
        }
    )

    own: Literal[True] = Field(description=_OWN_VALIDATION)


Validation = Annotated[
    Annotated[FirstImages, Tag("FirstImages")]
    | Annotated[RandomFraction, Tag("RandomFraction")]
    | Annotated[OwnValidation, Tag("OwnValidation")],
    choose_by_key(FirstImages, RandomFraction, OwnValidation),
]


class Resplit(Spec):
    """Shuffle all training and test images together and split them again.

    The images that are in neither `train` nor `validation` are the test images.
    """

    train: Fraction = Field(description="Fraction of all images to train on.")
    validation: Probability = Field(description="Fraction of all images to validate on; 0 for none.")
    seed: Seed = Field(0, description=_SPLIT_SEED)

    @model_validator(mode="after")
    def _leave_test_images(self) -> "Resplit":
        if self.train + self.validation >= 1:
            raise ValueError(
                f"train + validation must be below 1, so that test images remain; got {self.train + self.validation:g}"
            )
        return self


class PixelScale(Spec):
    """The network's input is (pixel / divide_by - mean) / std."""

    divide_by: PositiveFloat = Field(255.0, description="Divisor of the pixels, which are between 0 and 255.")
    mean: float = Field(0.0, description="Number to subtract from the divided pixels.")
    std: PositiveFloat = Field(1.0, description="Divisor after `mean` is subtracted.")


class DataSpec(Spec):
    """Where images come from and how they are split."""

    source: Annotated[str, Field(min_length=1)] = Field(
        description="Source of the images: "
        + "; ".join(f"`{SOURCE_FORMS[prefix]}`, {kind.description}" for prefix, kind in SOURCES.items())
        + "."
    )
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = Field(
        None,
        description=f"[height, width] in pixels to which images are resized; only for {_forms_with('size')}. "
        "Default: the size of the image files, if all have the same size.",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description=f"Number of channels: 1 (grey) or 3 (colour); only for {_forms_with('channels')}. Default: 1 if "
        "all image files are grey, otherwise 3.",
    )
    validation: Validation | None = Field(
        None, description="Images for validation, which are not trained on. Default: none."
    )
    resplit: Resplit | None = Field(
        None,
        description="New random split of all images, instead of `validation`. Default: the split of the source.",
    )
    classes: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="Class names in label order. Default: the class names of the source."
    )
    normalize: Literal["standard", "unit", "symmetric"] | PixelScale = Field(
        "standard",
        description="Scale of the network's input. `standard`: each channel has mean 0 and variance 1 over the "
        "training images. `unit`: from 0 to 1. `symmetric`: from -1 to 1.",
    )
    normalize_test: PixelScale | None = Field(
        None,
        description="Different scale for the test images, to reproduce a report that scaled them differently by "
        "mistake. Default: the scale of the training images.",
    )

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        prefix, _, argument = source.partition(":")
        takes_any = prefix in SOURCES and not SOURCES[prefix].built_in
        if source not in BUILT_IN_SOURCES and not (takes_any and argument):
            forms = [SOURCE_FORMS[prefix] for prefix, kind in SOURCES.items() if not kind.built_in]
            raise ValueError(f"got {source!r}; {did_you_mean(source, [*BUILT_IN_SOURCES, *forms])}")
        return source

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes and len(set(classes)) < len(classes):
            [(name, count)] = Counter(classes).most_common(1)
            raise ValueError(f"{count} classes are named {name!r}; expected different names")
        return classes

    @model_validator(mode="after")
    def _keys_agree(self) -> "DataSpec":
        for key in (key for kind in SOURCES.values() for key in kind.keys):
            if key not in self.kind.keys and getattr(self, key) is not None:
                raise ValueError(f"{key} is only valid for {_forms_with(key)}, not {self.source!r}")
        if self.validation is not None and self.resplit is not None:
            raise ValueError("give either validation or resplit, not both")
        if isinstance(self.validation, OwnValidation) and not self.kind.own_validation:
            raise ValueError(
                f"{self.source} has no separate validation images; use validation = {{ first = 5000 }} or "
                "{ fraction = 0.1 }"
            )
        return self

    @property
    def prefix(self) -> str:
        """Prefix of the source, such as `folder`, which is its key in `SOURCES`."""
        return self.source.partition(":")[0]

    @property
    def kind(self) -> SourceKind:
        """Kind of the source."""
        return SOURCES[self.prefix]

    @property
    def validates(self) -> bool:
        """Whether images are set aside for validation."""
        return self.validation is not None or (self.resplit is not None and self.resplit.validation > 0)


def known_facts(data: DataSpec) -> SourceFacts | None:
    """Return shape and classes of a built-in source; None for other sources, because their files must be read."""
    facts = BUILT_IN_SOURCES.get(data.source)
    return replace(facts, class_names=data.classes or facts.class_names) if facts else None
