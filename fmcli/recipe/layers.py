"""The layers of a network, as a recipe writes them. Each default is written here, once."""

from typing import Annotated, Literal

from pydantic import Field

from fmcli.recipe.spec import Positive, Probability, Spec

Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Initialization = Literal["torch", "glorot-uniform", "he-uniform", "he-normal"]
# One number for both sides, or [height, width].
Size = Positive | Annotated[tuple[Positive, Positive], Field(strict=False)]


class Layer(Spec):
    """One entry of a network's `layers`."""


class Conv(Layer):
    """Convolution. "same" pads with zeros to a side / stride, rounded up; an odd pixel at the bottom and right."""

    type: Literal["conv"] = "conv"
    filters: Positive
    kernel_size: Size
    stride: Size = 1
    padding: Literal["valid", "same"] = "valid"
    activation: Activation | None = None
    bias: bool = True
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Adds l2 times the sum of the squared kernel weights to the loss."""


class Dense(Layer):
    """Fully connected layer on flat input."""

    type: Literal["dense"] = "dense"
    units: Positive
    activation: Activation | None = None
    bias: bool = True
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Adds l2 times the sum of the squared kernel weights to the loss."""


class MaxPool(Layer):
    """The largest value of each window; what does not fill a window is dropped."""

    type: Literal["max-pool"] = "max-pool"
    size: Size = 2
    stride: Size | None = None
    """By default the size."""


class AvgPool(Layer):
    """The mean of each window; what does not fill a window is dropped."""

    type: Literal["avg-pool"] = "avg-pool"
    size: Size = 2
    stride: Size | None = None
    """By default the size."""


class GlobalMaxPool(Layer):
    """The largest value of each channel, flat."""

    type: Literal["global-max-pool"] = "global-max-pool"


class GlobalAvgPool(Layer):
    """The mean of each channel, flat."""

    type: Literal["global-avg-pool"] = "global-avg-pool"


class BatchNorm(Layer):
    """Batch normalisation over channels, or over features after `flatten`."""

    type: Literal["batch-norm"] = "batch-norm"
    momentum: Probability = 0.1
    eps: Annotated[float, Field(gt=0)] = 1e-5
    activation: Activation | None = None


class Dropout(Layer):
    """Inverted dropout."""

    type: Literal["dropout"] = "dropout"
    rate: Annotated[float, Field(ge=0, lt=1)]


class Flatten(Layer):
    """All numbers of an image in one row: by rows, columns, then channels."""

    type: Literal["flatten"] = "flatten"


class Activate(Layer):
    """An activation on its own."""

    type: Literal["activation"] = "activation"
    function: Activation


LayerSpec = Annotated[
    Conv | Dense | MaxPool | AvgPool | GlobalMaxPool | GlobalAvgPool | BatchNorm | Dropout | Flatten | Activate,
    Field(discriminator="type"),
]
