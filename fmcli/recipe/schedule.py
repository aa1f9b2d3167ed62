"""The table `[schedule]`: the learning rate over the steps of a training run. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmcli.recipe.base import FractionOrZero, PositiveInt, Probability, Spec

Decay = Annotated[float, Field(gt=0, le=1)]

_FINAL = "Final learning rate as a fraction of the peak."


class Schedule(Spec):
    """A linear warm-up, followed by a learning rate that depends on the schedule's name."""

    warmup: FractionOrZero = Field(0.0, description="Fraction of all steps that the warm-up takes.")


class ConstantSchedule(Schedule):
    """A constant learning rate."""

    name: Literal["constant"] = "constant"


class ExponentialSchedule(Schedule):
    """A learning rate that is multiplied by gamma after every epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: Decay = Field(description="Factor of the learning rate per epoch.")


class StepSchedule(Schedule):
    """A learning rate that is multiplied by gamma after every n epochs."""

    name: Literal["step"] = "step"
    every: PositiveInt = Field(description="Epochs between two multiplications.")
    gamma: Decay = Field(0.1, description="Factor of the learning rate.")


class CosineSchedule(Schedule):
    """Half a cosine from the peak to the final learning rate, step by step (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"
    final: Probability = Field(0.0, description=_FINAL)


class CyclicSchedule(Schedule):
    """Half a cosine from the peak to the final rate in each cycle: warm restarts (Loshchilov and Hutter 2017)."""

    name: Literal["cyclic"] = "cyclic"
    cycles: Annotated[int, Field(gt=0, le=1000)] = Field(
        description="Number of cycles of equal length. `trainer.epochs` must be a multiple of it."
    )
    final: Probability = Field(0.0, description="Learning rate at the end of each cycle, as a fraction of the peak.")

    @model_validator(mode="after")
    def _warm_up_in_the_first_cycle(self) -> "CyclicSchedule":
        if self.warmup * self.cycles >= 1:
            raise ValueError(f"warmup must end within the first of {self.cycles} cycles, got {self.warmup:g}")
        return self


class LinearSchedule(Schedule):
    """A straight line from the peak to the final learning rate, step by step."""

    name: Literal["linear"] = "linear"
    final: Probability = Field(0.0, description=_FINAL)


class OneCycleSchedule(Schedule):
    """Half a cosine up from the initial learning rate, then half a cosine down (Smith and Topin 2019)."""

    name: Literal["one-cycle"] = "one-cycle"
    warmup: FractionOrZero = Field(0.3, description="Fraction of all steps before the peak.")
    start: Probability = Field(0.04, description="Initial learning rate as a fraction of the peak.")
    final: Probability = Field(4e-6, description=_FINAL)


ScheduleSpec = Annotated[
    ConstantSchedule
    | ExponentialSchedule
    | StepSchedule
    | CosineSchedule
    | CyclicSchedule
    | LinearSchedule
    | OneCycleSchedule,
    Field(discriminator="name"),
]
