"""The layers of a network as a recipe writes them. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field

from fmcli.recipe.base import FractionOrZero, NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Spec

Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Initialization = Literal["torch", "glorot-uniform", "he-uniform", "he-normal"]
# One number for both sides, or [height, width].
Size = PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]

INIT_DESCRIPTION = "Distribution of initial weights. `torch`: PyTorch's defaults. Other values set biases to zero."
_ACTIVATION = "Function applied to the output. Default: none."
_BIAS = "Whether the layer adds a trained bias to each output."
_L2 = "L2 penalty: l2 × the sum of squared kernel weights is added to the loss."
_WINDOW = "Side of each window in pixels, or [height, width]."
_WINDOW_STRIDE = "Pixels between windows, or [vertical, horizontal]. Default: the window's size."


class Layer(Spec):
    """One entry of a network's `layers`."""


class Conv(Layer):
    """Convolution."""

    type: Literal["conv"] = "conv"
    filters: PositiveInt = Field(description="Number of output channels.")
    kernel_size: Size = Field(description="Side of the kernel in pixels, or [height, width].")
    stride: Size = Field(1, description="Pixels between kernel positions, or [vertical, horizontal].")
    padding: Literal["valid", "same"] = Field(
        "valid",
        description="`valid`: no padding. `same`: zeros, so that each side becomes side / stride, rounded up; if their "
        "number is odd, the extra one is at the bottom and right.",
    )
    activation: Activation | None = Field(None, description=_ACTIVATION)
    bias: bool = Field(True, description=_BIAS)
    l2: NonNegativeFloat = Field(0.0, description=_L2)


class Dense(Layer):
    """Fully connected layer; its input must be flat."""

    type: Literal["dense"] = "dense"
    units: PositiveInt = Field(description="Number of outputs.")
    activation: Activation | None = Field(None, description=_ACTIVATION)
    bias: bool = Field(True, description=_BIAS)
    l2: NonNegativeFloat = Field(0.0, description=_L2)


class MaxPool(Layer):
    """Maximum of each window; pixels that do not fill a window are dropped."""

    type: Literal["max-pool"] = "max-pool"
    size: Size = Field(2, description=_WINDOW)
    stride: Size | None = Field(None, description=_WINDOW_STRIDE)


class AvgPool(Layer):
    """Mean of each window; pixels that do not fill a window are dropped."""

    type: Literal["avg-pool"] = "avg-pool"
    size: Size = Field(2, description=_WINDOW)
    stride: Size | None = Field(None, description=_WINDOW_STRIDE)


class GlobalMaxPool(Layer):
    """Maximum of each channel; the output is flat."""

    type: Literal["global-max-pool"] = "global-max-pool"


class GlobalAvgPool(Layer):
    """Mean of each channel; the output is flat."""

    type: Literal["global-avg-pool"] = "global-avg-pool"


class BatchNorm(Layer):
    """Batch normalisation over channels, or over features after `flatten`."""

    type: Literal["batch-norm"] = "batch-norm"
    momentum: Probability = Field(0.1, description="Weight of the newest batch in the running mean and variance.")
    eps: PositiveFloat = Field(1e-5, description="Number added to the variance, so that nothing is divided by zero.")
    activation: Activation | None = Field(None, description=_ACTIVATION)


class Dropout(Layer):
    """Inverted dropout."""

    type: Literal["dropout"] = "dropout"
    rate: FractionOrZero = Field(description="Probability that a value is set to zero during training.")


class Flatten(Layer):
    """All values of an image in one row, ordered by row, column and channel."""

    type: Literal["flatten"] = "flatten"


class Activate(Layer):
    """A separate activation function."""

    type: Literal["activation"] = "activation"
    function: Activation = Field(description="The activation function.")


LayerSpec = Annotated[
    Conv | Dense | MaxPool | AvgPool | GlobalMaxPool | GlobalAvgPool | BatchNorm | Dropout | Flatten | Activate,
    Field(discriminator="type"),
]
