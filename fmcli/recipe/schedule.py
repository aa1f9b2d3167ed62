"""The table `[schedule]`: the learning rate during training. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmcli.recipe.base import FractionOrZero, PositiveInt, Probability, Spec

Decay = Annotated[float, Field(gt=0, le=1)]

_FINAL = "Learning rate at the end as a fraction of `optimizer.lr`."


class Schedule(Spec):
    """A linear warm-up to `optimizer.lr`, followed by the learning rate that the name describes."""

    warmup: FractionOrZero = Field(0.0, description="Length of the linear warm-up as a fraction of all steps.")


class ConstantSchedule(Schedule):
    """A constant learning rate."""

    name: Literal["constant"] = "constant"


class ExponentialSchedule(Schedule):
    """A learning rate that is multiplied by `gamma` after every epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: Decay = Field(description="Factor by which the learning rate is multiplied after every epoch.")


class StepSchedule(Schedule):
    """A learning rate that is multiplied by `gamma` at regular intervals."""

    name: Literal["step"] = "step"
    every: PositiveInt = Field(description="Number of epochs between two multiplications.")
    gamma: Decay = Field(0.1, description="Factor by which the learning rate is multiplied.")


class CosineSchedule(Schedule):
    """A learning rate that falls along half a cosine, step by step (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"
    final: Probability = Field(0.0, description=_FINAL)


class CyclicSchedule(Schedule):
    """A learning rate that falls along half a cosine in each cycle: warm restarts (Loshchilov and Hutter 2017)."""

    name: Literal["cyclic"] = "cyclic"
    cycles: Annotated[int, Field(gt=0, le=1000)] = Field(
        description="Number of cycles, all of the same length. `trainer.epochs` must be a multiple of `cycles`."
    )
    final: Probability = Field(
        0.0, description="Learning rate at the end of each cycle as a fraction of `optimizer.lr`."
    )

    @model_validator(mode="after")
    def _warm_up_in_the_first_cycle(self) -> "CyclicSchedule":
        if self.warmup * self.cycles >= 1:
            raise ValueError(
                f"warmup must end in the first of {self.cycles} cycles: expected a number below {1 / self.cycles:g}, "
                f"got {self.warmup:g}"
            )
        return self


class LinearSchedule(Schedule):
    """A learning rate that falls along a straight line, step by step."""

    name: Literal["linear"] = "linear"
    final: Probability = Field(0.0, description=_FINAL)


class OneCycleSchedule(Schedule):
    """A learning rate that rises once and falls once, both along half a cosine (Smith and Topin 2019)."""

    name: Literal["one-cycle"] = "one-cycle"
    warmup: FractionOrZero = Field(0.3, description="Length of the rise as a fraction of all steps.")
    start: Probability = Field(0.04, description="Learning rate at the start as a fraction of `optimizer.lr`.")
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
