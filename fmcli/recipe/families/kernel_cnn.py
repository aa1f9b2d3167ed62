"""The family `kernel-cnn`: convolutional networks whose kernel size is an argument."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fmcli.recipe.layers import BatchNorm, Conv, Dense, Flatten, GlobalMaxPool, Initialization, LayerSpec, MaxPool
from fmcli.recipe.spec import Positive, Spec


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


def expand(model: KernelCnnSpec, input_shape: tuple[int, ...], n_classes: int) -> Iterator[LayerSpec]:
    """Yield the layers of a network.

    Args:
        model: The `[model]` table.
        input_shape: (C, H, W).
        n_classes: Number of logits.
    """
    return _plain(model, n_classes) if model.form == "plain" else _pooled(model, n_classes, input_shape)


def _plain(model: KernelCnnSpec, n_classes: int) -> Iterator[LayerSpec]:
    """Yield the layers of An et al. 2020 (arXiv 2008.10400): M3, M5 and M7 are three sets of arguments."""
    for width, kernel_size in zip(model.widths, model.kernel_sizes, strict=True):
        yield Conv(filters=width, kernel_size=kernel_size, bias=False)
        yield BatchNorm(activation="relu")
    yield Flatten()
    yield Dense(units=n_classes, bias=False)
    yield BatchNorm()


def _pooled(model: KernelCnnSpec, n_classes: int, input_shape: tuple[int, ...]) -> Iterator[LayerSpec]:
    """Yield stages that each halve the image at their end; pooled before normalising, which is less work.

    Where nothing is left to halve, a stage leaves the image as it is: any size will do.
    """
    side = min(input_shape[1:])
    for stage, (width, kernel_size) in enumerate(zip(model.widths, model.kernel_sizes, strict=True)):
        last_stage = stage == len(model.widths) - 1
        depth = 1 if stage == 0 else model.depth
        for position in range(depth):
            yield Conv(filters=width, kernel_size=kernel_size, padding="same", bias=False)
            if position == depth - 1 and not last_stage and side >= 2:
                yield MaxPool(size=2)
                side //= 2
            yield BatchNorm(activation="relu")
    yield GlobalMaxPool()
    yield Dense(units=n_classes)
