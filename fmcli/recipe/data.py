"""The table `[data]`: where images come from and how they are split. Each default is defined only here."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, Tag, field_validator, model_validator

from fmcli.errors import did_you_mean
from fmcli.recipe.base import Fraction, PositiveFloat, PositiveInt, Probability, Seed, Spec, choose_by_key

SOURCE_PREFIXES = {"folder": "DIR", "idx": "DIR", "npz": "FILE"}
"""Prefixes of `data.source`, as in `folder:DIR`, each with the placeholder of its argument."""
VALIDATION_KINDS = ("first", "fraction", "own")
"""Keys of `data.validation`, which has exactly one of them."""
_SPLIT_SEED = "Seed of the random split."


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Shape and classes of a recipe's images.

    Args:
        input_shape: (C, H, W) of one image.
        class_names: Class names in label order.
        n_train: Number of training images; None if unknown.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    n_train: int | None = None


KNOWN_SOURCES = {
    "fashion-mnist": SourceFacts(
        input_shape=(1, 28, 28),
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        n_train=60_000,
    ),
}
"""Shape and classes of each built-in source."""


class FirstImages(Spec):
    """Set aside the first training images for validation."""

    first: PositiveInt = Field(description="Number of training images to set aside for validation.")


class RandomFraction(Spec):
    """Set aside a random fraction of the training images for validation."""

    fraction: Fraction = Field(description="Fraction of the training images to set aside for validation.")
    seed: Seed = Field(0, description=_SPLIT_SEED)
    stratify: bool = Field(False, description="Set aside the same fraction of each class.")


class OwnValidation(Spec):
    """Use the separate validation images of the source.

    They are in the folder `validation` of `folder:DIR`, in the files `validation-images-idx3-ubyte` and
    `validation-labels-idx1-ubyte` of `idx:DIR`, or in the arrays `val_images` and `val_labels` of `npz:FILE`.
    """

    own: Literal[True] = Field(description="Use the separate validation images of the source.")


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
        description="Source of the images: `fashion-mnist`; `folder:DIR`, a folder with one subfolder of image files "
        "per class; `idx:DIR`, a folder of IDX files; or `npz:FILE`, an archive of NumPy arrays."
    )
    size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] | None = Field(
        None,
        description="[height, width] in pixels to which images are resized; only for `folder:DIR`. Default: the size "
        "of the image files, if all have the same size.",
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="Number of channels: 1 (grey) or 3 (colour); only for `folder:DIR`. Default: 1 if all image files "
        "are grey, otherwise 3.",
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
        prefix, colon, path = source.partition(":")
        if source not in KNOWN_SOURCES and not (colon and path and prefix in SOURCE_PREFIXES):
            choices = [*KNOWN_SOURCES, *(f"{prefix}:{argument}" for prefix, argument in SOURCE_PREFIXES.items())]
            raise ValueError(f"got {source!r}; {did_you_mean(source, choices)}")
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
        given = [name for name in ("size", "channels") if getattr(self, name) is not None]
        if given and not self.source.startswith("folder:"):
            raise ValueError(f"{given[0]} is only valid for source = 'folder:DIR', not {self.source!r}")
        if self.validation is not None and self.resplit is not None:
            raise ValueError("give either validation or resplit, not both")
        return self

    @property
    def validates(self) -> bool:
        """Whether images are set aside for validation."""
        return self.validation is not None or (self.resplit is not None and self.resplit.validation > 0)


def known_facts(data: DataSpec) -> SourceFacts | None:
    """Return shape and classes of a built-in source; None for other sources, because their files must be read."""
    facts = KNOWN_SOURCES.get(data.source)
    return replace(facts, class_names=data.classes or facts.class_names) if facts else None
