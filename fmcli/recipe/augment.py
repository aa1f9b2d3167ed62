"""The table `[augment]`: random changes to training images. Each default is defined only here."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from fmcli.recipe.base import Fraction, FractionOrZero, Probability, Spec


class AlbumentationsSpec(Spec):
    """One transform of the albumentations library, with its arguments."""

    name: str = Field(description="Class name, e.g. `ElasticTransform`, `OneOf`, `SomeOf` or `Sequential`.")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments, including `p`.")
    transforms: Annotated[tuple["AlbumentationsSpec", ...], Field(strict=False)] = Field(
        (), description="The transforms that `OneOf` and similar classes choose from."
    )


class AugmentSpec(Spec):
    """Random changes to training images, drawn again for each image in each epoch."""

    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="Maximum rotation in degrees; uniform in ± this value."
    )
    translate: FractionOrZero = Field(
        0.0, description="Maximum translation as a fraction of each side; uniform in ± this value."
    )
    shift: Annotated[int, Field(ge=0)] = Field(
        0, description="Maximum shift in whole pixels, horizontally and vertically; uniform in ± this value."
    )
    flip: Probability = Field(0.0, description="Probability of a horizontal flip.")
    erase: Probability = Field(0.0, description="Probability that a random rectangle is filled with noise.")
    erase_area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = Field(
        (0.02, 0.33),
        description="Minimum and maximum fraction of the image to erase; less if the rectangle is longer than a side.",
    )
    albumentations: Annotated[tuple[AlbumentationsSpec, ...], Field(strict=False)] = Field(
        (), description="Transforms that worker processes apply on the CPU before all other augmentations."
    )

    @model_validator(mode="after")
    def _area_in_order(self) -> "AugmentSpec":
        if self.erase_area[0] > self.erase_area[1]:
            raise ValueError("erase_area must be [smallest, largest]")
        return self
