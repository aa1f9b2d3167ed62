"""The table `[optimizer]`: how gradients change weights. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmcli.recipe.base import FractionOrZero, NonNegativeFloat, PositiveFloat, Spec

Betas = Annotated[tuple[FractionOrZero, FractionOrZero], Field(strict=False)]

_LR = "Learning rate; with a schedule, the highest learning rate."
_BETAS = "Decay per step of two running means: [of the gradients, of the squared gradients]."
_EPS = "Number added to the root of the mean squared gradient to avoid division by zero."
_DECAY = "Decoupled weight decay: each step subtracts lr × weight_decay × weight, except for biases and batch norm."


class AdamSpec(Spec):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    lr: PositiveFloat = Field(1e-3, description=_LR)
    betas: Betas = Field((0.9, 0.999), description=_BETAS)
    eps: PositiveFloat = Field(1e-8, description=_EPS)


class AdamWSpec(Spec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = Field(1e-3, description=_LR)
    betas: Betas = Field((0.9, 0.999), description=_BETAS)
    eps: PositiveFloat = Field(1e-8, description=_EPS)
    weight_decay: NonNegativeFloat = Field(0.01, description=_DECAY)


class SgdSpec(Spec):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: PositiveFloat = Field(0.1, description=_LR)
    momentum: FractionOrZero = Field(0.0, description="Fraction of the previous update that is added to each update.")
    nesterov: bool = Field(False, description="Use Nesterov momentum.")
    weight_decay: NonNegativeFloat = Field(
        0.0, description="L2 penalty: weight_decay × weight is added to the gradient, except for biases and batch norm."
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SgdSpec":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


class MuonSpec(Spec):
    """Orthogonalized momentum (Jordan et al. 2024). AdamW trains the last layer, biases and batch norm."""

    name: Literal["muon"] = "muon"
    lr: PositiveFloat = Field(3e-3, description=f"{_LR} Muon and AdamW updates are scaled to the same size.")
    momentum: FractionOrZero = Field(
        0.95, description="Decay per step of the running mean of gradients that is orthogonalized. Only for Muon."
    )
    betas: Betas = Field((0.9, 0.999), description=f"{_BETAS} Only for AdamW.")
    eps: PositiveFloat = Field(1e-8, description=f"{_EPS} Only for AdamW.")
    weight_decay: NonNegativeFloat = Field(0.01, description=_DECAY)


OptimizerSpec = Annotated[AdamSpec | AdamWSpec | SgdSpec | MuonSpec, Field(discriminator="name")]
