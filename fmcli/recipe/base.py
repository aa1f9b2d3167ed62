"""The base class of every table of a recipe, and the kinds of numbers that several tables use."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrZero = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Spec(BaseModel):
    """A table of a recipe: frozen, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        defer_build=True,  # validators are built at first use, so commands that read no recipe start faster
    )


def choose_by_key(*specs: type[Spec]) -> Discriminator:
    """Return a discriminator that recognizes each table of a union by its first key.

    Args:
        specs: The tables. The tag of a table is its class name, because no key of a recipe has this name.
    """
    tags = {next(iter(spec.model_fields)): spec.__name__ for spec in specs}

    def find_tag(value: Any) -> str | None:
        keys = value if isinstance(value, dict) else dir(value)
        return next((tag for key, tag in tags.items() if key in keys), None)

    message = f"expected one of the keys {', '.join(tags)}"
    return Discriminator(find_tag, custom_error_type="no_such_table", custom_error_message=message)
