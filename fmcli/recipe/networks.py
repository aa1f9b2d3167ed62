"""The `[model]` table: networks by kernel size, or layer by layer. Every default is written here, once."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fmcli.recipe.spec import Positive, Probability, Spec

MOST_LAYERS = 1000
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


class KernelCnnSpec(Spec):
    """A convolutional network whose kernel size is an argument.

    `plain`: one unpadded convolution for each width, each with batch normalisation and ReLU, then a dense
    layer with batch normalisation: the networks of An et al. 2020, arXiv 2008.10400.
    `pooled`: one stage for each width, "same" padding, each stage halving the image, then global pooling: for
    any image size, and quick on a CPU.
    """

    family: Literal["kernel-cnn"] = "kernel-cnn"
    kernel_size: Positive | Annotated[tuple[Positive, ...], Field(strict=False)]
    """Side of every convolution's kernel, in pixels; or one for each width: [3, 3, 7] has large ones at the end."""
    widths: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=50)]
    """Channels of each convolution (plain) or of each stage (pooled)."""
    form: Literal["plain", "pooled"] = "plain"
    """`plain`: unpadded convolutions, as An et al. have them; `pooled`: stages that halve the image, for any size."""
    depth: Annotated[int, Field(gt=0, le=20)] = 2
    """Convolutions in each stage after the first, which has one (pooled only)."""
    init: Initialization = "torch"

    @model_validator(mode="after")
    def _have_a_kernel_for_each_width(self) -> Self:
        given, needed = len(self.kernel_sizes), len(self.widths)
        if given != needed:
            raise ValueError(f"kernel_size takes one number, or one for each width ({needed}); got {given}")
        return self

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """One for each width."""
        return (self.kernel_size,) * len(self.widths) if isinstance(self.kernel_size, int) else self.kernel_size


class SequentialSpec(Spec):
    """A network spelled out layer by layer."""

    family: Literal["sequential"] = "sequential"
    layers: Annotated[tuple[LayerSpec, ...], Field(strict=False, min_length=1, max_length=MOST_LAYERS)]
    init: Initialization = "torch"
    """How kernels are drawn: PyTorch's own way, or by name; biases are zero unless `torch`."""

    @field_validator("layers", mode="before")
    @classmethod
    def _not_too_many(cls, layers: Any) -> Any:
        if isinstance(layers, list) and len(layers) > MOST_LAYERS:  # before each of them is looked at
            raise ValueError(f"got {len(layers)} layers; expected at most {MOST_LAYERS}")
        return layers


ModelSpec = Annotated[KernelCnnSpec | SequentialSpec, Field(discriminator="family")]


def kernel_group(model: ModelSpec) -> str:
    """Return the kernel sizes of a network's convolutions, which is what members of a two-level vote are grouped by.

    Example:
        >>> kernel_group(KernelCnnSpec(kernel_size=5, widths=(8, 16)))
        '5'
    """
    sizes: set[Size]
    if isinstance(model, KernelCnnSpec):
        sizes = set(model.kernel_sizes)
    else:
        sizes = {layer.kernel_size for layer in model.layers if isinstance(layer, Conv)}
    shown = {str(size) if isinstance(size, int) else "×".join(map(str, size)) for size in sizes}
    return "+".join(sorted(shown)) or "none"
