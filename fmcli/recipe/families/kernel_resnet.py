"""The family `kernel-resnet`: residual networks defined by kernel sizes and widths."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fmcli.recipe import layers
from fmcli.recipe.base import FractionOrZero, PositiveInt
from fmcli.recipe.families.base import Family, check_one_per_width, repeat_per_width
from fmcli.recipe.layers import InitKey, LayerSpec

Depth = Annotated[int, Field(gt=0, le=20)]


class KernelResnetSpec(Family):
    """A residual network defined by kernel sizes and widths, for small images.

    The first convolution and a 2×2 max-pooling are followed by one stage of residual blocks per width, global pooling
    and a dense layer. Each stage after the first halves an image of at least 2 pixels per side, so only the first
    convolution sees all pixels.

    References:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    family: Literal["kernel-resnet"] = "kernel-resnet"
    kernel_size: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(strict=False)] = Field(
        description="Side of the kernels in pixels: one number, or a list with one number per width, such as [3, 5]. "
        "The first number is also for the first convolution."
    )
    widths: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=50)] = Field(
        description="Number of channels of each stage, in order. The first number is also for the first convolution."
    )
    depth: Depth | Annotated[tuple[Depth, ...], Field(strict=False)] = Field(
        1,
        description="Number of residual blocks per stage: one number, or a list with one number per width. A block has "
        "two convolutions.",
    )
    squeeze_excite: bool = Field(
        False, description="End each block with a `squeeze-excite` layer (Hu et al. 2018), before the sum."
    )
    stochastic_depth: FractionOrZero = Field(
        0.0,
        description="Probability that the last block is skipped for an image during training (Huang et al. 2016). It "
        "grows linearly over the blocks up to this value.",
    )
    init: InitKey = "torch"

    @model_validator(mode="after")
    def _one_value_per_width(self) -> Self:
        check_one_per_width("kernel_size", self.kernel_size, self.widths)
        check_one_per_width("depth", self.depth, self.widths)
        return self

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel sizes, one per width."""
        return repeat_per_width(self.kernel_size, self.widths)

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the first convolution, the stages and the dense layer."""
        return tuple(self._layers(min(input_shape[1:]), n_classes))

    def _layers(self, side: int, n_classes: int) -> Iterator[LayerSpec]:
        depths = repeat_per_width(self.depth, self.widths)
        n_blocks, block = sum(depths), 0
        yield layers.Conv(filters=self.widths[0], kernel_size=self.kernel_sizes[0], padding="same", bias=False)
        for stage, (width, kernel_size, depth) in enumerate(zip(self.widths, self.kernel_sizes, depths, strict=True)):
            if side >= 2:
                yield layers.MaxPool(size=2)
                side //= 2
            if stage == 0:
                yield layers.BatchNorm(activation="relu")  # after pooling, because it then has less work
            for _ in range(depth):
                block += 1
                yield self._block(width, kernel_size, self.stochastic_depth * (block / n_blocks))
        yield layers.GlobalAvgPool()
        yield layers.Dense(units=n_classes)

    def _block(self, width: int, kernel_size: int, stochastic_depth: float) -> layers.Residual:
        conv = layers.Conv(filters=width, kernel_size=kernel_size, padding="same", bias=False)
        ending = (layers.SqueezeExcite(),) if self.squeeze_excite else ()
        return layers.Residual(
            body=(conv, layers.BatchNorm(activation="relu"), conv, layers.BatchNorm(), *ending),
            shortcut="auto",
            stochastic_depth=stochastic_depth,
            activation="relu",
        )
