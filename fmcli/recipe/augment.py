"""The table `[augment]`: random changes to training images. Each default is defined only here."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from fmcli.recipe.base import Fraction, FractionOrZero, Probability, Spec


class AlbumentationsSpec(Spec):
    """One transform of the albumentations library, with its arguments."""

    name: str = Field(description="Name of the transform's class, such as `ElasticTransform` or `OneOf`.")
    args: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the transform, such as the probability `p`."
    )
    transforms: Annotated[tuple["AlbumentationsSpec", ...], Field(strict=False)] = Field(
        (), description="Transforms inside `OneOf`, `SomeOf`, `Sequential` and similar classes."
    )


class AugmentSpec(Spec):
    """Random changes to training images, different for each image and epoch."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="Largest rotation in degrees. Angles are uniform in ±`rotate`."
    )
    translate: FractionOrZero = Field(
        0.0,
        description="Largest shift as a fraction of each side. Shifts are uniform in ±`translate`, with interpolation.",
    )
    shift: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Largest shift in whole pixels, horizontally and vertically. Shifts are uniform in ±`shift`.",
    )
    flip: Probability = Field(0.0, description="Probability of a horizontal flip.")
    erase: Probability = Field(0.0, description="Probability that a random rectangle of an image is filled with noise.")
    erase_area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = Field(
        (0.02, 0.33),
        description="[smallest, largest] area of the erased rectangle as a fraction of the image. A rectangle that is "
        "longer than a side of the image is cut, so its area can be smaller.",
    )
    albumentations: Annotated[tuple[AlbumentationsSpec, ...], Field(strict=False)] = Field(
        (),
        description="Transforms of the albumentations library. Worker processes apply them on the CPU before all other "
        "changes.",
    )

    @model_validator(mode="after")
    def _area_is_a_range(self) -> "AugmentSpec":
        if self.erase_area[0] > self.erase_area[1]:
            raise ValueError(f"erase_area must be [smallest, largest]; got {list(self.erase_area)}")
        return self
