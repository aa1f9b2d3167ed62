"""The layers of a network in a recipe. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field

from fmcli.recipe.base import FractionOrZero, NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Spec

Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
Initialization = Literal["torch", "glorot-uniform", "he-uniform", "he-normal"]
# One number for both sides, or [height, width].
Size = PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]

InitKey = Annotated[
    Initialization,
    Field(
        description="Distribution of initial weights. `torch`: PyTorch's default. Other values also set biases to zero."
    ),
]
"""The key `init` of a network family."""
_ACTIVATION = "Activation function after the layer. Default: none."
_BIAS = "Add a trained bias to each output."
_L2 = "L2 penalty: `l2` × the sum of the layer's squared weights (without biases) is added to the loss."
_WINDOW = "Side of the windows in pixels, or [height, width]."
_WINDOW_STRIDE = "Distance between windows in pixels, or [vertical, horizontal]. Default: `size`."


class Layer(Spec):
    """One entry of a network's `layers`."""


class Conv(Layer):
    """Convolution."""

    type: Literal["conv"] = "conv"
    filters: PositiveInt = Field(description="Number of output channels.")
    kernel_size: Size = Field(description="Side of the kernels in pixels, or [height, width].")
    stride: Size = Field(1, description="Distance between kernel positions in pixels, or [vertical, horizontal].")
    padding: Literal["valid", "same"] = Field(
        "valid",
        description="`valid`: no padding. `same`: zeros around the image, so that each side of the output is the side "
        "of the image / stride, rounded up. If the number of zeros is odd, the bottom and right get one more.",
    )
    groups: PositiveInt = Field(
        1,
        description="Split channels and filters into this number of groups; each group of filters reads only its group "
        "of channels. Must divide both numbers. With one group per channel, the convolution is depthwise.",
    )
    activation: Activation | None = Field(None, description=_ACTIVATION)
    bias: bool = Field(True, description=_BIAS)
    l2: NonNegativeFloat = Field(0.0, description=_L2)


class Dense(Layer):
    """Fully connected layer. The input must be flat."""

    type: Literal["dense"] = "dense"
    units: PositiveInt = Field(description="Number of outputs.")
    activation: Activation | None = Field(None, description=_ACTIVATION)
    bias: bool = Field(True, description=_BIAS)
    l2: NonNegativeFloat = Field(0.0, description=_L2)


class MaxPool(Layer):
    """Maximum of each window. Pixels at the edge that do not fill a window are dropped."""

    type: Literal["max-pool"] = "max-pool"
    size: Size = Field(2, description=_WINDOW)
    stride: Size | None = Field(None, description=_WINDOW_STRIDE)


class AvgPool(Layer):
    """Mean of each window. Pixels at the edge that do not fill a window are dropped."""

    type: Literal["avg-pool"] = "avg-pool"
    size: Size = Field(2, description=_WINDOW)
    stride: Size | None = Field(None, description=_WINDOW_STRIDE)


class GlobalMaxPool(Layer):
    """Maximum of each channel. The output is flat."""

    type: Literal["global-max-pool"] = "global-max-pool"


class GlobalAvgPool(Layer):
    """Mean of each channel. The output is flat."""

    type: Literal["global-avg-pool"] = "global-avg-pool"


class BatchNorm(Layer):
    """Batch norm of each channel, or of each feature after `flatten`."""

    type: Literal["batch-norm"] = "batch-norm"
    momentum: Probability = Field(0.1, description="Weight of the current batch in the running mean and variance.")
    eps: PositiveFloat = Field(1e-5, description="Number added to the variance to avoid division by zero.")
    activation: Activation | None = Field(None, description=_ACTIVATION)


class Dropout(Layer):
    """Dropout: set random values to zero during training and scale up the rest."""

    type: Literal["dropout"] = "dropout"
    rate: FractionOrZero = Field(description="Probability that a value is set to zero.")


class Flatten(Layer):
    """All values of an image as a flat list, ordered by row, then column, then channel."""

    type: Literal["flatten"] = "flatten"


class Activate(Layer):
    """Activation function as a separate layer."""

    type: Literal["activation"] = "activation"
    function: Activation = Field(description="Activation function.")


class SqueezeExcite(Layer):
    """Multiply each channel by a number from 0 to 1, which two dense layers compute from the means of all channels.

    References:
        Hu, Shen and Sun, "Squeeze-and-excitation networks", CVPR 2018.
    """

    type: Literal["squeeze-excite"] = "squeeze-excite"
    reduction: PositiveInt = Field(
        4, description="Number of channels / number of units of the first dense layer. It has at least one unit."
    )


class Residual(Layer):
    """Add the input of the inner layers (`body`) to their output.

    References:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.
        Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016.
    """

    type: Literal["residual"] = "residual"
    body: Annotated[tuple["RecipeLayer", ...], Field(strict=False, min_length=1)] = Field(
        description="Inner layers from first to last: any layers of `model.layers`, including `residual`."
    )
    shortcut: Literal["identity", "auto"] = Field(
        "identity",
        description="`identity`: the input is added unchanged, so the body must keep its shape. `auto`: if the body "
        "changes the shape, a 1×1 convolution and a batch norm give the input the same shape.",
    )
    stochastic_depth: FractionOrZero = Field(
        0.0, description="Probability that the body is skipped for an image during training. Other images scale it up."
    )
    activation: Activation | None = Field(None, description="Activation function after the sum. Default: none.")


RecipeLayer = Annotated[
    Conv
    | Dense
    | MaxPool
    | AvgPool
    | GlobalMaxPool
    | GlobalAvgPool
    | BatchNorm
    | Dropout
    | Flatten
    | Activate
    | SqueezeExcite
    | Residual,
    Field(discriminator="type"),
]
"""A layer that a recipe may contain."""


class Backbone(Layer):
    """A complete network of torchvision as one layer. Only the family `torchvision` contains it."""

    type: Literal["backbone"] = "backbone"
    name: str
    weights: str | None = None
    n_classes: PositiveInt


LayerSpec = RecipeLayer | Backbone
"""A layer of an expanded network."""
