"""Peer: Keras on TensorFlow, in the usual style: images in memory, `compile`, `fit`, `predict`."""

import math
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl
from numpy.typing import NDArray

from benchmarks.peers import MIN_STEPS, WARM_UP_STEPS, Answer, Job, main, majority, read_images, time_passes
from benchmarks.works import INPUT_SHAPE, VOTE, WORKS, Work, load_work
from fmcli.recipe.augment import AugmentSpec
from fmcli.recipe.layers import (
    Activate,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    LayerSpec,
    MaxPool,
)
from fmcli.recipe.optimizer import AdamSpec, AdamWSpec, MuonSpec, OptimizerSpec, SgdSpec
from fmcli.recipe.tracing import LayerTrace, pair

MIN_FILLED = 0.7  # minimum share of the measuring time that the timed epoch must take


def build_network(traces: Sequence[LayerTrace], augment: AugmentSpec | None = None) -> keras.Sequential:
    """Return the network of a recipe, preceded by augmentation layers."""
    channels, height, width = INPUT_SHAPE
    network = [keras.Input((height, width, channels))]
    if augment is not None and (augment.rotate or augment.translate):
        network.append(kl.RandomRotation(augment.rotate / 360, fill_mode="constant"))
        network.append(kl.RandomTranslation(augment.translate, augment.translate, fill_mode="constant"))
    for trace in traces:
        network += build_layer(trace.layer)
    return keras.Sequential(
        [*network, kl.Activation("linear", dtype="float32")]
    )  # Keras recommends float32 outputs with bfloat16


def build_layer(layer: LayerSpec) -> Iterator[kl.Layer]:
    """Yield the Keras layers for a layer of a recipe."""
    match layer:
        case Conv():
            yield kl.Conv2D(
                layer.filters,
                pair(layer.kernel_size),
                strides=pair(layer.stride),
                padding=layer.padding,
                activation=layer.activation,
                use_bias=layer.bias,
                kernel_regularizer=keras.regularizers.L2(layer.l2) if layer.l2 else None,
            )
        case Dense():
            yield kl.Dense(
                layer.units,
                activation=layer.activation,
                use_bias=layer.bias,
                kernel_regularizer=keras.regularizers.L2(layer.l2) if layer.l2 else None,
            )
        case MaxPool():
            yield kl.MaxPooling2D(layer.size, layer.stride)
        case AvgPool():
            yield kl.AveragePooling2D(layer.size, layer.stride)
        case GlobalMaxPool():
            yield kl.GlobalMaxPooling2D()
        case GlobalAvgPool():
            yield kl.GlobalAveragePooling2D()
        case BatchNorm():
            yield kl.BatchNormalization(momentum=1 - layer.momentum, epsilon=layer.eps)
            if layer.activation is not None:
                yield kl.Activation(layer.activation)
        case Dropout():
            yield kl.Dropout(layer.rate)
        case Flatten():
            yield kl.Flatten()
        case Activate():
            yield kl.Activation(layer.function)


def build_optimizer(spec: OptimizerSpec) -> keras.optimizers.Optimizer:
    """Return the recipe's optimizer, but AdamW instead of Muon: AdamW is the usual choice in Keras, and less work."""
    match spec:
        case AdamSpec(betas=(first, second)):
            return keras.optimizers.Adam(spec.lr, beta_1=first, beta_2=second, epsilon=spec.eps)
        case AdamWSpec(betas=(first, second)) | MuonSpec(betas=(first, second)):
            return keras.optimizers.AdamW(
                spec.lr, weight_decay=spec.weight_decay, beta_1=first, beta_2=second, epsilon=spec.eps
            )
        case SgdSpec():
            return keras.optimizers.SGD(spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)


def compile_network(work: Work) -> keras.Sequential:
    """Return the compiled network."""
    model = build_network(work.traces, work.member.augment)
    model.compile(
        optimizer=build_optimizer(work.member.optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class Epochs(keras.callbacks.Callback):
    """Time each epoch. A callback after each step would slow Keras down."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.started = 0.0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.started)


class TestedEpochs(Epochs):
    """Time each epoch, and test after it. Testing is not timed."""

    def __init__(self, images: NDArray[np.float32], labels: NDArray[np.uint8]) -> None:
        super().__init__()
        self.images, self.labels = images, labels
        self.curve: list[list[float]] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        """Stop the clock, then test."""
        super().on_epoch_end(epoch, logs)
        logits = self.model.predict(self.images, batch_size=512, verbose=0)
        self.curve.append([sum(self.seconds), float((logits.argmax(axis=1) == self.labels).mean())])


def in_memory(job: Job, split: str, *, multiple_of: int = 1) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return images (N, H, W, C) in [0, 1], and labels (N,)."""
    images, labels = read_images(job, split, multiple_of=multiple_of)
    return images[..., None].astype("float32") / 255, labels


def prepare(job: Job) -> None:
    """Set threads and precision."""
    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    tf.config.threading.set_inter_op_parallelism_threads(job.threads)
    if job.bf16:
        keras.config.set_dtype_policy("mixed_bfloat16")


def train(job: Job) -> Answer:
    """Time one epoch of about the measuring time. Earlier, shorter epochs compile and show how many steps it needs."""
    prepare(job)
    work = load_work(job.work, augment=job.augment)
    images, labels = in_memory(job, "train", multiple_of=work.batch_size)
    model = compile_network(work)

    def fit(steps: int, epochs: int = 1) -> float:
        clock, count = Epochs(), steps * work.batch_size
        model.fit(
            images[:count], labels[:count], batch_size=work.batch_size, epochs=epochs, verbose=0, callbacks=[clock]
        )
        return clock.seconds[-1]

    max_steps = len(images) // work.batch_size
    steps = WARM_UP_STEPS
    seconds = fit(steps, epochs=2)
    while steps < min(MIN_STEPS, max_steps) or (seconds < MIN_FILLED * job.seconds and steps < max_steps):
        steps = min(max(round(steps * job.seconds / seconds), MIN_STEPS), max_steps)
        seconds = fit(steps)
    return {"images_per_second": steps * work.batch_size / seconds, "steps": steps, "seconds": seconds}


def epoch(job: Job) -> Answer:
    """Train for one epoch."""
    prepare(job)
    work = load_work(job.work, augment=job.augment)
    images, labels = in_memory(job, "train", multiple_of=work.batch_size)
    compile_network(work).fit(images, labels, batch_size=work.batch_size, verbose=0)
    return {}


def first_step(job: Job) -> Answer:
    """Train for one step."""
    prepare(job)
    work = load_work(job.work, augment=job.augment)
    images, labels = in_memory(job, "train", multiple_of=work.batch_size)
    compile_network(work).fit(images, labels, batch_size=work.batch_size, verbose=0, steps_per_epoch=1)
    return {}


def accuracy(job: Job) -> Answer:
    """Train for the epochs of the recipe at a constant learning rate. Test after each epoch; testing is not timed."""
    prepare(job)
    work = load_work(job.work, augment=job.augment)
    images, labels = in_memory(job, "train", multiple_of=work.batch_size)
    clock = TestedEpochs(*in_memory(job, "t10k"))
    compile_network(work).fit(
        images,
        labels,
        batch_size=work.batch_size,
        epochs=work.member.trainer.epochs,
        verbose=0,
        callbacks=[clock],
    )
    return {"members": {job.work: clock.curve}, "train_seconds": sum(clock.seconds)}


def parameters(job: Job) -> Answer:
    """Return the number of parameters of each network, for a test."""
    sizes = {name: build_network(load_work(name).traces).trainable_variables for name in WORKS}
    return {name: sum(math.prod(variable.shape) for variable in found) for name, found in sizes.items()}


def predict(job: Job) -> Answer:
    """Time the vote of three untrained networks."""
    prepare(job)
    images, _ = in_memory(job, "t10k")
    models = [build_network(load_work(name).traces) for name in VOTE]

    def vote() -> None:
        majority(np.stack([model.predict(images, batch_size=512, verbose=0) for model in models]))

    return time_passes(vote, len(images), job.seconds)


if __name__ == "__main__":
    main(
        {
            "train": train,
            "epoch": epoch,
            "first_step": first_step,
            "accuracy": accuracy,
            "predict": predict,
            "parameters": parameters,
        }
    )
