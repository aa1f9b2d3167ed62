"""The training loop: train one member from its recipe and images to its checkpoints."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fmcli.checkpoints.history import read_history
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.data import Splits, explain_worker_error, is_worker_error
from fmcli.errors import DeviceError, Remedy
from fmcli.events import EpochFinished, MemberFinished, MemberStarted, Reporter, StepFinished, ignore
from fmcli.hardware.device import device_name, is_out_of_memory
from fmcli.hardware.memory import keep_freed_memory
from fmcli.networks.inference import disable_tf32
from fmcli.networks.tracing import trace_network
from fmcli.recipe import Recipe
from fmcli.recipe.tracing import LayerTrace
from fmcli.training.divergence import DivergenceGuard
from fmcli.training.fingerprint import Fingerprint, check_trained
from fmcli.training.member_setup import MemberSetup
from fmcli.training.saving import Saver
from fmcli.training.state import STATE_FILE, EpochProgress, TrainingState
from fmcli.training.validation import Validation, Validator

SAVE_INTERVAL_S = 300.0  # seconds between saves within one epoch


def train_member(
    recipe: Recipe,
    name: str,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    traces: Sequence[LayerTrace] | None = None,
    resume: bool = False,
    save_after: float = SAVE_INTERVAL_S,
    reporter: Reporter = ignore,
) -> list[EpochFinished]:
    """Train one member of a recipe and write its checkpoint and its snapshots.

    Args:
        recipe: The recipe.
        name: Name of the member.
        splits: The images.
        folder: The member's folder.
        device: The training device.
        traces: The layers of the member's network. Default: trace them.
        resume: Continue from the saved state of an earlier process. A finished member is not trained again.
        save_after: Seconds between saves within one epoch.
        reporter: Receives events.

    Returns:
        The finished epochs. With `keep = "retrained"`, the member is trained twice, and all epochs are returned.

    Raises:
        RecipeError: The network or the augmentation cannot be built for these images.
        CheckpointError: The saved state is damaged, or belongs to a different recipe or different images.
        DeviceError: The device has too little memory.
        DivergedError: The loss is no longer finite. The folder `last-good` has the last saved weights, if any.
        FmcliError: A file cannot be written.
    """
    spec = next(member for member in recipe.members if member.name == name)
    fingerprint = Fingerprint.of(spec, recipe, splits, device)
    if resume and (folder / MODEL_FILE).is_file():
        check_trained(spec, folder, fingerprint)
        (folder / STATE_FILE).unlink(missing_ok=True)  # left over if a process was killed before it removed the file
        reporter(MemberFinished(name, folder / MODEL_FILE, already_trained=True))
        return read_history(folder)
    if traces is None:
        traces = trace_network(spec.model, splits.train.input_shape, len(splits.train.class_names))
    with _explained_errors(name, device):
        keep_freed_memory()
        disable_tf32()
        setup = MemberSetup(
            spec, recipe, splits, folder, traces=traces, device=device, fingerprint=fingerprint, reporter=reporter
        )
        return _train(setup, resume=resume, save_after=save_after)


def _train(setup: MemberSetup, *, resume: bool, save_after: float) -> list[EpochFinished]:
    """Train a member once, or twice with `keep = "retrained"`. Write its files and return all epochs."""
    guard, validator = DivergenceGuard(setup), Validator(setup)
    saver = Saver(setup, validator, guard, save_after=save_after)
    with saver.keeping_last_good():
        state = saver.start(resume=resume)
        while True:
            setup.reporter(_started(setup, state))
            with saver.saving_on_stop(state):
                _train_epochs(setup, state, guard, validator, saver)
            if setup.spec.trainer.keep != "retrained" or state.retrained:
                break
            state = TrainingState(setup.build_learner(retrained=True), first_pass=state.this_pass)
            saver.save_state(state)
        path = saver.save_trained(state)
    setup.reporter(MemberFinished(setup.spec.name, path))
    return state.history


def _train_epochs(
    setup: MemberSetup, state: TrainingState, guard: DivergenceGuard, validator: Validator, saver: Saver
) -> None:
    """For each epoch, for each batch: step; validate; save."""
    learner, loader, order = state.learner, setup.loaders.train, state.learner.generators.order
    for epoch in state.remaining_epochs():
        progress = state.progress = state.progress or EpochProgress.start(order, len(loader), setup.device)
        learner.model.train()
        for images, labels in progress.batches(loader, order):
            lr = setup.schedule(epoch * len(loader) + progress.steps)
            loss, logits = learner.step(images, labels, lr)
            progress.add_step(loss, logits, labels)
            setup.reporter(StepFinished(setup.spec.name, progress.steps))
            saver.save_within_epoch(state)
        guard.check_losses(epoch, progress)
        if setup.loaders.unaugmented is not None and learner.averages(epoch) and not progress.ended:
            with saver.discarding_on_stop(state):
                learner.end_epoch(epoch, validator.reported(setup.loaders.unaugmented.batches()))
        progress.ended = True
        validation = validator.validate(learner)
        if validation.loss is not None:
            guard.check("validation loss", validation.loss, steps=(epoch + 1) * len(loader))
        results = _results(setup, state, progress, validation)
        saver.save_snapshot(state, validation.logits)
        state.end_epoch(results)
        saver.save_after_epoch(state)
        setup.reporter(results)


def _started(setup: MemberSetup, state: TrainingState) -> MemberStarted:
    return MemberStarted(
        member=setup.spec.name,
        epochs=state.n_epochs,
        steps_per_epoch=setup.steps_per_epoch,
        first_epoch=len(state.this_pass) + 1,
        parameters=state.learner.parameters,
        device=device_name(setup.device),
        precision=setup.fingerprint.precision,
        retrained=state.retrained,
        steps_done=state.progress.steps if state.progress else 0,
    )


def _results(
    setup: MemberSetup, state: TrainingState, progress: EpochProgress, validation: Validation
) -> EpochFinished:
    loader, epoch = setup.loaders.train, len(state.this_pass)
    return EpochFinished(
        member=setup.spec.name,
        epoch=epoch + 1,
        lr=setup.schedule((epoch + 1) * len(loader) - 1),
        train_loss=loader.mean_over_images(progress.losses),
        train_accuracy=int(progress.correct) / loader.n_images,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        seconds=progress.seconds + time.perf_counter() - progress.timed_at,
        images_per_second=loader.n_images / progress.seconds,
        retrained=state.retrained,
    )


@contextmanager
def _explained_errors(name: str, device: torch.device) -> Iterator[None]:
    """Explain an error of a worker process, or too little memory, inside the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_worker_error(error):
            raise explain_worker_error(error) from error
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{device_name(device)} has too little memory for member {name}", remedies=["batch-size", Remedy("jobs", 1)]
        ) from error
