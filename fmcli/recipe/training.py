"""How a recipe's networks are trained: optimizer, schedule and loop. Every default is written here, once."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmcli.recipe.spec import Fraction, Positive, Probability, Seed, Spec

# --- [optimizer] ----------------------------------------------------------------------------------------

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
LearningRate = Annotated[float, Field(gt=0)]
WeightDecay = Annotated[float, Field(ge=0)]


class AdamSpec(Spec):
    """Adam (Kingma and Ba 2015)."""

    name: Literal["adam"] = "adam"
    lr: LearningRate = 1e-3
    """The learning rate; with a schedule, its highest value."""
    betas: Betas = (0.9, 0.999)
    """How much of the gradients' mean and of their squares' mean a step keeps."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the squares' mean, so that nothing is divided by zero."""


class AdamWSpec(Spec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), on kernels only."""

    name: Literal["adamw"] = "adamw"
    lr: LearningRate = 1e-3
    """The learning rate; with a schedule, its highest value."""
    betas: Betas = (0.9, 0.999)
    """How much of the gradients' mean and of their squares' mean a step keeps."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the squares' mean, so that nothing is divided by zero."""
    weight_decay: WeightDecay = 0.01
    """The part of each weight that a step takes away, times the learning rate."""


class SgdSpec(Spec):
    """Stochastic gradient descent; weight decay on kernels only."""

    name: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.1
    """The learning rate; with a schedule, its highest value."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: WeightDecay = 0.0
    """So many times each weight is added to its gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SgdSpec":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class MuonSpec(Spec):
    """Momentum made orthogonal (Jordan et al. 2024) for kernels; AdamW for the last layer and all that is no kernel."""

    name: Literal["muon"] = "muon"
    lr: LearningRate = 3e-3
    """Of Muon and AdamW, whose steps are as large; with a schedule, the highest."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    betas: Betas = (0.9, 0.999)
    """Of AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Of AdamW."""
    weight_decay: WeightDecay = 0.01
    """Of kernels, the last layer's among them."""


OptimizerSpec = Annotated[AdamSpec | AdamWSpec | SgdSpec | MuonSpec, Field(discriminator="name")]


# --- [schedule] -----------------------------------------------------------------------------------------


class Schedule(Spec):
    """A learning rate over the steps of a training: a linear warm-up, then the shape that the name says."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of all steps that the warm-up takes."""


class ConstantSchedule(Schedule):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"


class ExponentialSchedule(Schedule):
    """The learning rate times gamma after every epoch."""

    name: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)]


class StepSchedule(Schedule):
    """The learning rate times gamma after every so many epochs."""

    name: Literal["step"] = "step"
    every: Positive
    """Epochs between two drops."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class CosineSchedule(Schedule):
    """Half a cosine down, step by step (Loshchilov and Hutter 2017)."""

    name: Literal["cosine"] = "cosine"
    final: Probability = 0.0
    """The learning rate at the end, as a part of the highest."""


class CyclicSchedule(Schedule):
    """Half a cosine down, begun anew for each cycle: warm restarts (Loshchilov and Hutter 2017)."""

    name: Literal["cyclic"] = "cyclic"
    cycles: Annotated[int, Field(gt=0, le=1000)]
    """How many, each of the same number of epochs: `trainer.epochs` must divide by it."""
    final: Probability = 0.0
    """The learning rate at the end of each cycle, as a part of the highest."""

    @model_validator(mode="after")
    def _warm_up_in_the_first_cycle(self) -> "CyclicSchedule":
        if self.warmup * self.cycles >= 1:
            raise ValueError(f"warmup must end within the first of {self.cycles} cycles, got {self.warmup:g}")
        return self


class LinearSchedule(Schedule):
    """A straight line down, step by step."""

    name: Literal["linear"] = "linear"
    final: Probability = 0.0
    """The learning rate at the end, as a part of the highest."""


class OneCycleSchedule(Schedule):
    """Half a cosine up from a part of the learning rate, then half a cosine down (Smith and Topin 2019)."""

    name: Literal["one-cycle"] = "one-cycle"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """The part of all steps that the way up takes."""
    start: Probability = 0.04
    """The learning rate at the beginning, as a part of the highest."""
    final: Probability = 4e-6
    """The learning rate at the end, as a part of the highest."""


ScheduleSpec = Annotated[
    ConstantSchedule
    | ExponentialSchedule
    | StepSchedule
    | CosineSchedule
    | CyclicSchedule
    | LinearSchedule
    | OneCycleSchedule,
    Field(discriminator="name"),
]

# --- [trainer] ------------------------------------------------------------------------------------------

Monitor = Literal["accuracy", "loss"]


class TrainerSpec(Spec):
    """The loop."""

    epochs: Positive = 10
    """How often all training images are seen, at most."""
    batch_size: Positive = 128
    """Images in a step."""
    full_batch: bool = False
    """Take all training images as one batch (plain gradient descent) instead of `batch_size`."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch."""
    seed: Seed = 0
    """All that is drawn, from initial weights to augmentation, comes from this seed and the member's index in the
    recipe."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of the target that all classes share equally."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of all gradients together; longer ones are scaled down to it."""
    monitor: Monitor = "accuracy"
    """What makes an epoch better than another, on the validation images: a higher accuracy, or a lower loss."""
    patience: Annotated[int, Field(ge=0)] | None = None
    """Stop early, when so many epochs in a row were no better than the best before them (0 does as 1)."""
    keep: Literal["last", "best", "retrained", "snapshots"] = "last"
    """Whose weights become the checkpoint: the last epoch's, the best epoch's, or those of a network that is
    trained afresh, for as many epochs as the best one took. `snapshots`: the last epoch's, and beside them those at
    the end of each earlier cycle of a cyclic schedule, each with a vote of its own (Huang et al. 2017)."""
    weight_average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights, which is then what is evaluated and saved."""
    swa: Fraction | None = None
    """The part of the epochs, at the end, after each of which the weights enter an equal average (stochastic weight
    averaging, Izmailov et al. 2018); with the statistics of batch normalisation taken afresh over the training
    images, dropout included, it is what is evaluated after the last epoch and saved."""
    bagging: Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on a sample of the training images, of this part of their number, that is drawn with replacement once
    (bootstrap aggregating, Breiman 1996)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device has units that multiply it, fp32 elsewhere."""

    @model_validator(mode="after")
    def _ends_as_it_should(self) -> "TrainerSpec":
        against_swa = {
            "weight_average": self.weight_average is not None,
            f"keep = {self.keep!r}": self.keep != "last",
            "patience": self.patience is not None,
        }
        given = [key for key, is_given in against_swa.items() if is_given]
        if self.swa is not None and given:
            raise ValueError(f"swa averages the last epochs, so it does not go with {' or '.join(given)}")
        if self.keep == "snapshots" and self.patience is not None:
            raise ValueError("keep = 'snapshots' needs whole cycles, so it does not go with patience")
        return self

    @property
    def averaged_epochs(self) -> int:
        """How many of the last epochs `swa` averages."""
        return 0 if self.swa is None else max(round(self.swa * self.epochs), 1)

    def sample_size(self, n_images: int) -> int:
        """Return on how many of so many training images the network is trained: fewer, where `bagging` says so."""
        return n_images if self.bagging is None else max(round(self.bagging * n_images), 1)
