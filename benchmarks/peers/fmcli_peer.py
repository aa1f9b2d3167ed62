"""Peer: fmcli, with the same calls as `fmcli train` and `fmcli ensemble evaluate`."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.peers import Answer, Clock, Job, main, read_images, time_passes
from benchmarks.works import N_CLASSES, VOTE, Work, load_work
from fmcli.data import ImageSet, Splits, evaluation_loader, resolve_normalization
from fmcli.ensemble.rules.majority import Majority
from fmcli.events import Event, StepFinished
from fmcli.hardware.device import resolve_device, use_bf16
from fmcli.hardware.memory import keep_freed_memory
from fmcli.networks.build import build_model
from fmcli.networks.inference import InferenceNetwork
from fmcli.recipe import Recipe
from fmcli.training import train_member


class StopTraining(Exception):
    """Stops the training loop when it has been timed for long enough."""


def image_set(job: Job, split: str, *, multiple_of: int = 1) -> ImageSet:
    """Return the images of a split."""
    images, labels = read_images(job, split, multiple_of=multiple_of)
    return ImageSet(images[:, None], labels.astype(np.int64), tuple(str(label) for label in range(N_CLASSES)))


def run(job: Job, work: Work, epochs: int, is_last_step: Callable[[], bool] = lambda: False) -> None:
    """Train the member of a work.

    Args:
        job: Device, threads and images.
        work: Network and recipe.
        epochs: Maximum number of epochs.
        is_last_step: Called after each step. If it returns True, training stops.
    """
    torch.set_num_threads(job.threads)
    images = image_set(job, "train", multiple_of=work.batch_size)
    member = work.member.model_copy(
        update={"trainer": work.member.trainer.model_copy(update={"epochs": epochs, "patience": None})}
    )
    recipe: Recipe = work.recipe.model_copy(update={"members": (member,)})

    def report(event: Event) -> None:
        if isinstance(event, StepFinished) and is_last_step():
            raise StopTraining

    with TemporaryDirectory() as folder, suppress(StopTraining):
        train_member(
            recipe,
            member.name,
            Splits(images, None, images),
            Path(folder),
            device=resolve_device(job.device),
            reporter=report,
        )


def train(job: Job) -> Answer:
    """Time steps of the training loop."""
    work = load_work(job.work, augment=job.augment)
    synchronize = torch.cuda.synchronize if job.device == "cuda" else lambda: None
    clock = Clock(job.seconds, work.batch_size, synchronize)
    run(job, work, 10**6, clock.step)
    return clock.answer()


def epoch(job: Job) -> Answer:
    """Train for one epoch."""
    run(job, load_work(job.work, augment=job.augment), 1)
    return {}


def first_step(job: Job) -> Answer:
    """Train for one step."""
    run(job, load_work(job.work, augment=job.augment), 1, lambda: True)
    return {}


def predict(job: Job) -> Answer:
    """Time the vote of three untrained networks; the speed does not depend on the weights."""
    keep_freed_memory()
    torch.set_num_threads(job.threads)
    device = resolve_device(job.device)
    images = image_set(job, "t10k")
    loader = evaluation_loader(images, device)
    normalization = resolve_normalization("standard", images)
    generator = torch.Generator().manual_seed(0)
    models = [build_model(load_work(name).traces, generator=generator) for name in VOTE]
    networks = [InferenceNetwork(model.to(device), bf16=use_bf16("auto", device)) for model in models]

    def vote() -> None:
        with torch.inference_mode():
            inputs = map(normalization, loader.batches())
            logits = torch.cat([torch.stack([network(batch) for network in networks]) for batch in inputs], dim=1)
        Majority().combine(logits.cpu().numpy())

    return time_passes(vote, len(images), job.seconds)


if __name__ == "__main__":
    main({"train": train, "epoch": epoch, "first_step": first_step, "predict": predict})
