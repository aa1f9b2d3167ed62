"""The table `[trainer]`: the training loop. Each default is defined only here."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fmcli.recipe.base import Fraction, FractionOrZero, PositiveFloat, PositiveInt, Seed, Spec

Monitor = Literal["accuracy", "loss"]


class TrainerSpec(Spec):
    """The training loop."""

    epochs: PositiveInt = Field(10, description="Maximum number of passes over the training images.")
    batch_size: PositiveInt = Field(128, description="Images per step.")
    full_batch: bool = Field(
        False, description="Use all training images as one batch (plain gradient descent) instead of `batch_size`."
    )
    drop_last: bool = Field(False, description="Skip the last batch of an epoch if it is smaller than `batch_size`.")
    seed: Seed = Field(
        0,
        description="Seed of everything random, from initial weights to augmentation. Each member combines it with its "
        "index in the recipe.",
    )
    label_smoothing: FractionOrZero = Field(
        0.0, description="Part of each target that is spread equally over all classes."
    )
    clip_norm: PositiveFloat | None = Field(
        None,
        description="Maximum norm of all gradients together; larger gradients are scaled down. Default: no limit.",
    )
    monitor: Monitor = Field(
        "accuracy", description="Validation score that compares epochs: highest accuracy or lowest loss."
    )
    patience: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Stop after this number of epochs in a row without a better validation score (0 means 1). Default: "
        "never.",
    )
    keep: Literal["last", "best", "retrained", "snapshots"] = Field(
        "last",
        description="Weights to save. `last`: the last epoch. `best`: the best epoch. `retrained`: a second network, "
        "trained from scratch for the best number of epochs. `snapshots`: the last epoch and, as extra voters, the end "
        "of each earlier cycle of a cyclic schedule (Huang et al. 2017).",
    )
    weight_average: Fraction | None = Field(
        None,
        description="Decay per step of an exponential moving average of the weights, which is then evaluated and "
        "saved. Default: no average.",
    )
    swa: Fraction | None = Field(
        None,
        description="Fraction of the epochs, counted from the end, whose final weights enter an equal average "
        "(stochastic weight averaging, Izmailov et al. 2018). The average is evaluated after the last epoch "
        "and saved; its batch norm statistics are computed again from the training images, with dropout on. Default: "
        "no average.",
    )
    bagging: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Size of a bootstrap sample as a fraction of the training images. The sample is drawn once with "
        "replacement (bootstrap aggregating, Breiman 1996). Default: train on all images.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Number format of multiplications. `auto`: bf16 if the device has units for it, else fp32."
    )
    cuda_graph: bool = Field(
        False,
        description="Record a training step as a CUDA graph and replay it. Only on an NVIDIA GPU, where it has not "
        "been measured yet.",
    )

    @model_validator(mode="after")
    def _averages_and_stopping_agree(self) -> "TrainerSpec":
        against_swa = {
            "weight_average": self.weight_average is not None,
            f"keep = {self.keep!r}": self.keep != "last",
            "patience": self.patience is not None,
        }
        given = [key for key, is_given in against_swa.items() if is_given]
        if self.swa is not None and given:
            raise ValueError(f"swa averages the last epochs, so it cannot be combined with {' or '.join(given)}")
        if self.keep == "snapshots" and self.patience is not None:
            raise ValueError("keep = 'snapshots' needs whole cycles, so it cannot be combined with patience")
        return self

    @model_serializer(mode="wrap")
    def _omit_cuda_graph_if_off(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A recipe without the key keeps its digest. With CUDA graphs the digest differs: a graph reads the learning
        # rate from a float32 tensor, so weights may differ in the last bits.
        return {name: value for name, value in dump(self).items() if name != "cuda_graph" or value}

    @property
    def averaged_epochs(self) -> int:
        """Number of epochs at the end that `swa` averages."""
        return 0 if self.swa is None else max(round(self.swa * self.epochs), 1)

    def sample_size(self, n_images: int) -> int:
        """Return the number of images to train on: fewer than all if `bagging` is set."""
        return n_images if self.bagging is None else max(round(self.bagging * n_images), 1)
