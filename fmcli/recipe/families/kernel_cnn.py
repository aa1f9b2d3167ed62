"""The family `kernel-cnn`: convolutional networks defined by kernel sizes and widths."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fmcli.recipe import layers
from fmcli.recipe.base import PositiveInt
from fmcli.recipe.families.base import Family, check_one_per_width, repeat_per_width
from fmcli.recipe.layers import InitKey, LayerSpec


class KernelCnnSpec(Family):
    """A convolutional network defined by kernel sizes and widths."""

    family: Literal["kernel-cnn"] = "kernel-cnn"
    kernel_size: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(strict=False)] = Field(
        description="Side of the kernels in pixels: one number, or a list with one number per width, such as [3, 3, 7]."
    )
    widths: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=50)] = Field(
        description="Number of channels of each convolution (`plain`) or stage (`pooled`), in order."
    )
    form: Literal["plain", "pooled"] = Field(
        "plain",
        description="`plain`: one convolution without padding per width, then a dense layer, all with batch norm (An "
        "et al. 2020, arXiv 2008.10400). `pooled`: one stage of padded convolutions per width, then global pooling. "
        "Every stage except the last halves the image, so this form is fast and works for any image size.",
    )
    depth: Annotated[int, Field(gt=0, le=20)] = Field(
        2, description="Number of convolutions per stage, except in the first stage, which has one. Only for `pooled`."
    )
    init: InitKey = "torch"

    @model_validator(mode="after")
    def _one_kernel_size_per_width(self) -> Self:
        check_one_per_width("kernel_size", self.kernel_size, self.widths)
        return self

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel sizes, one per width."""
        return repeat_per_width(self.kernel_size, self.widths)

    def expand(self, input_shape: tuple[int, ...], n_classes: int) -> tuple[LayerSpec, ...]:
        """Return the layers of the form that was chosen."""
        return tuple(_plain(self, n_classes) if self.form == "plain" else _pooled(self, n_classes, input_shape))


def _plain(model: KernelCnnSpec, n_classes: int) -> Iterator[LayerSpec]:
    """Yield the layers of An et al. 2020 (arXiv 2008.10400), whose M3, M5 and M7 differ in kernel size and widths."""
    for width, kernel_size in zip(model.widths, model.kernel_sizes, strict=True):
        yield layers.Conv(filters=width, kernel_size=kernel_size, bias=False)
        yield layers.BatchNorm(activation="relu")
    yield layers.Flatten()
    yield layers.Dense(units=n_classes, bias=False)
    yield layers.BatchNorm()


def _pooled(model: KernelCnnSpec, n_classes: int, input_shape: tuple[int, ...]) -> Iterator[LayerSpec]:
    """Yield stages of convolutions. Every stage except the last halves an image of at least 2 pixels per side.

    Pooling is before batch norm, which then has less work.
    """
    side = min(input_shape[1:])
    for stage, (width, kernel_size) in enumerate(zip(model.widths, model.kernel_sizes, strict=True)):
        last_stage = stage == len(model.widths) - 1
        depth = 1 if stage == 0 else model.depth
        for position in range(depth):
            yield layers.Conv(filters=width, kernel_size=kernel_size, padding="same", bias=False)
            if position == depth - 1 and not last_stage and side >= 2:
                yield layers.MaxPool(size=2)
                side //= 2
            yield layers.BatchNorm(activation="relu")
    yield layers.GlobalMaxPool()
    yield layers.Dense(units=n_classes)
