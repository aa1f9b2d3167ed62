"""The table `[trainer]`: how members are trained and saved. Each default is defined only here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmcli.recipe.base import Fraction, FractionOrZero, PositiveFloat, PositiveInt, Seed, Spec

Monitor = Literal["accuracy", "loss"]


class TrainerSpec(Spec):
    """How members are trained and which weights are saved."""

    epochs: PositiveInt = Field(
        10, description="Number of passes over the training images. With `patience`, the maximum number."
    )
    batch_size: PositiveInt = Field(128, description="Number of images per step.")
    full_batch: bool = Field(
        False, description="Use all training images as one batch (plain gradient descent); `batch_size` is ignored."
    )
    drop_last: bool = Field(False, description="Skip the last batch of an epoch if it is smaller than `batch_size`.")
    seed: Seed = Field(
        0,
        description="Seed of all random numbers, from initial weights to augmentation. It is combined with the index "
        "of the member, so that members differ.",
    )
    label_smoothing: FractionOrZero = Field(
        0.0, description="Fraction of each target probability that is spread equally over all classes."
    )
    clip_norm: PositiveFloat | None = Field(
        None,
        description="Largest norm of the gradient of all weights together. A larger gradient is scaled down to it. "
        "Default: no limit.",
    )
    monitor: Monitor = Field(
        "accuracy",
        description="Validation score that determines the best epoch: the highest `accuracy` or the lowest `loss`.",
    )
    patience: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Stop training after this number of epochs in a row without a better validation score. 0 is the "
        "same as 1. Default: train all epochs.",
    )
    keep: Literal["last", "best", "retrained", "snapshots"] = Field(
        "last",
        description="Weights to save. `last`: after the last epoch. `best`: after the best epoch. `retrained`: of a "
        "second network that is trained from scratch and stops at the best epoch of the first. `snapshots`: after each "
        "cycle of a cyclic schedule; all of them vote (Huang et al. 2017).",
    )
    weight_average: Fraction | None = Field(
        None,
        description="Decay per step of an exponential moving average of the weights. The average is evaluated and "
        "saved. Default: no average.",
    )
    swa: Fraction | None = Field(
        None,
        description="Fraction of all epochs, counted from the end. The weights after each of these epochs are averaged "
        "(stochastic weight averaging, Izmailov et al. 2018). The average is evaluated and saved after the last epoch. "
        "Its batch norm statistics are computed again from the training images, with dropout on. Default: no average.",
    )
    bagging: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Size of the random sample that a member is trained on, as a fraction of all training images. Each "
        "member draws its own sample once, with replacement (bootstrap aggregating, Breiman 1996). Default: train on "
        "all training images.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of multiplications. `auto`: bf16 if the device has bf16 hardware, otherwise fp32.",
    )
    cuda_graph: bool = Field(
        False,
        description="Record a training step as a CUDA graph and replay it. Needs an NVIDIA GPU; the speed has not been "
        "measured yet.",
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
            raise ValueError(f"swa cannot be combined with {' or '.join(given)}")
        if self.keep == "snapshots" and self.patience is not None:
            raise ValueError("keep = 'snapshots' needs all cycles, so it cannot be combined with patience")
        return self

    @property
    def averaged_epochs(self) -> int:
        """Number of epochs that `swa` averages; 0 without it."""
        return 0 if self.swa is None else max(round(self.swa * self.epochs), 1)

    def sample_size(self, n_images: int) -> int:
        """Return the number of images to train on, which depends on `bagging`."""
        return n_images if self.bagging is None else max(round(self.bagging * n_images), 1)
