"""The table `[data]`: where images come from and how they are split. Each default is defined only here."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from fmcli.errors import did_you_mean
from fmcli.recipe.base import Fraction, PositiveFloat, PositiveInt, Probability, Seed, Spec, choose_by_key
from fmcli.recipe.facts import KNOWN_SOURCES, SOURCE_PREFIXES

_SPLIT_SEED = "Seed of the random split."


class FirstImages(Spec):
    """Validate on the first n training images."""

    first: PositiveInt = Field(description="Number of training images, from the first, to set aside for validation.")


class RandomFraction(Spec):
    """Validate on a random fraction of the training images."""

    fraction: Fraction = Field(description="Fraction of the training images to set aside for validation.")
    seed: Seed = Field(0, description=_SPLIT_SEED)
    stratify: bool = Field(False, description="Set aside the same fraction of every class.")


class OwnValidation(Spec):
    """Validate on the source's own validation set."""

    own: Literal[True] = Field(
        description="Use the folder `validation`, the file `validation-images-idx3-ubyte` or the array `val_images`."
    )


VALIDATION_KINDS = ("first", "fraction", "own")
"""Keys of `data.validation`, which has exactly one of them."""


Validation = Annotated[
    Annotated[FirstImages, Tag("first")]
    | Annotated[RandomFraction, Tag("fraction")]
    | Annotated[OwnValidation, Tag("own")],
    choose_by_key(*VALIDATION_KINDS),
]


class Resplit(Spec):
    """Shuffle training and test images together and split them again; the rest becomes the test set."""

    train: Fraction = Field(description="Fraction of all images to train on.")
    validation: Probability = Field(description="Fraction of all images to validate on.")
    seed: Seed = Field(0, description=_SPLIT_SEED)

    @model_validator(mode="after")
    def _leave_a_test_set(self) -> "Resplit":
        if self.train + self.validation >= 1:
            raise ValueError("train + validation must be below 1, so that images are left for the test set")
        return self


class PixelScale(Spec):
    """Network input is (pixel / divide_by - mean) / std."""

    divide_by: PositiveFloat = Field(255.0, description="Divisor of each pixel, which is between 0 and 255.")
    mean: float = Field(0.0, description="Number subtracted from each divided pixel.")
    std: PositiveFloat = Field(1.0, description="Divisor of the difference.")


_FOLDER_KEYS = ("size", "channels")


class DataSpec(Spec):
    """Where images come from and how they are split."""

    source: Annotated[str, Field(min_length=1)] = Field(
        description="`fashion-mnist`; `folder:DIR`, with one subfolder of images per class; `idx:DIR`; or `npz:FILE`."
    )
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = Field(
        None,
        description="Height and width in pixels that images of `folder:` are fitted to. Default: their own size, if "
        "all have the same.",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="Channels of images of `folder:`: 1 for grey, 3 for colour. Default: 1 if all images are grey, "
        "otherwise 3.",
    )
    validation: Validation | None = Field(
        None, description="Images to validate on. Default: none, and all training images are trained on."
    )
    resplit: Resplit | None = Field(
        None, description="Shuffle training and test images together and split them again, instead of `validation`."
    )
    classes: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="Class names in the order of their labels. Default: the names that the source gives."
    )
    normalize: Literal["standard", "unit", "symmetric"] | PixelScale = Field(
        "standard",
        description="Range of the network's input. `standard`: mean 0 and variance 1 over the training images. `unit`: "
        "0 to 1. `symmetric`: -1 to 1.",
    )
    normalize_test: PixelScale | None = Field(
        None,
        description="Another scale for test images, to reproduce a report that used one by mistake. Default: the scale "
        "of training images.",
    )

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        prefix, colon, path = source.partition(":")
        if source not in KNOWN_SOURCES and not (colon and path and prefix in SOURCE_PREFIXES):
            choices = [*KNOWN_SOURCES, *(f"{prefix}:{argument}" for prefix, argument in SOURCE_PREFIXES.items())]
            raise ValueError(f"got {source!r}; {did_you_mean(source, choices)}")
        return source

    @model_validator(mode="after")
    def _check_folder_keys(self) -> "DataSpec":
        given = [name for name in _FOLDER_KEYS if getattr(self, name) is not None]
        if given and not self.source.startswith("folder:"):
            raise ValueError(f"{given[0]} is only valid for source = 'folder:DIR', not {self.source!r}")
        return self

    @model_serializer(mode="wrap")
    def _omit_unset_folder_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
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
