"""The training loop: train one member from its recipe and images to its checkpoints."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fmcli.checkpoints.history import best_epoch, is_stalled, read_history, write_history
from fmcli.checkpoints.layout import LAST_GOOD, MODEL_FILE, remove_last_good, remove_snapshots, snapshot_name
from fmcli.checkpoints.tensors import with_prefix, without_prefix
from fmcli.data import DeviceLoader, Splits, explain_worker_error, is_worker_error
from fmcli.errors import DeviceError, DivergedError, FmcliError, Remedy, printable
from fmcli.events import (
    BatchPredicted,
    CheckpointSaved,
    EpochFinished,
    MemberFinished,
    MemberStarted,
    Reporter,
    StepFinished,
    StopRequest,
    ignore,
)
from fmcli.hardware.device import device_name, is_out_of_memory
from fmcli.hardware.memory import keep_freed_memory
from fmcli.networks.inference import InferenceNetwork, disable_tf32, predict_logits
from fmcli.networks.tracing import trace_network
from fmcli.recipe import MemberSpec, Recipe
from fmcli.training.divergence import DivergenceGuard
from fmcli.training.fingerprint import STARTED, Fingerprint, check_fingerprint, check_snapshot, check_trained
from fmcli.training.learner import Learner
from fmcli.training.loaders import build_loaders
from fmcli.training.optim import Schedule, build_schedule
from fmcli.training.rng import Generators
from fmcli.training.saving import CheckpointWriter, epochs_per_snapshot
from fmcli.training.state import STATE_FILE, EpochProgress, TrainingState, load_state, save_state

SAVE_INTERVAL_S = 300.0  # seconds between saves within one epoch
MAX_SAVING_SHARE = 0.05  # maximum share of the time that is spent on saving after short epochs


def train_member(
    recipe: Recipe,
    name: str,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
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
    training = _Training(recipe, name, splits, folder, device, save_after, reporter)
    if resume and (folder / MODEL_FILE).is_file():
        check_trained(training.spec, folder, training.fingerprint)
        (folder / STATE_FILE).unlink(missing_ok=True)  # left over if a process was killed before it removed the file
        reporter(MemberFinished(name, folder / MODEL_FILE, already_trained=True))
        return read_history(folder)
    try:
        return training.run(resume=resume)
    except (MemoryError, RuntimeError) as error:
        if is_worker_error(error):
            raise explain_worker_error(error) from error
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{device_name(device)} has too little memory for member {name}", remedies=["batch-size", Remedy("jobs", 1)]
        ) from error


class _Training:
    """Everything that `train_member` keeps while it trains one member."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        splits: Splits,
        folder: Path,
        device: torch.device,
        save_after: float,
        reporter: Reporter,
    ) -> None:
        self.recipe, self.splits, self.folder, self.device = recipe, splits, folder, device
        self.save_after, self.reporter = save_after, reporter
        self.index = [member.name for member in recipe.members].index(name)
        self.spec: MemberSpec = recipe.members[self.index]
        self.guard = DivergenceGuard(self.spec, recipe)
        self.progress: EpochProgress | None = None  # None between epochs
        self.can_be_saved = True
        self.next_save = 0.0  # earliest time of the next save after an epoch, by `time.perf_counter`
        self.history: list[EpochFinished] = []
        self.first_history: list[EpochFinished] = []  # for `keep = "retrained"`: epochs of the first time
        self.fingerprint = Fingerprint.of(self.spec, recipe, splits, device)
        self.bf16 = self.fingerprint.precision == "bf16"

    def _prepare(self) -> None:
        """Build loaders, schedule, checkpoint writer and learner."""
        keep_freed_memory()
        disable_tf32()
        spec, sample = self.spec, self._seed_generators(retrained=False).sample
        loaders = build_loaders(spec, self.recipe, self.splits, self.device, sample)
        self.loader, self.unaugmented, self.validation = loaders.train, loaders.unaugmented, loaders.validation
        self.normalization = loaders.normalization
        self.schedule: Schedule = build_schedule(
            spec.schedule, lr=spec.optimizer.lr, epochs=spec.trainer.epochs, steps_per_epoch=len(self.loader)
        )
        self.writer = CheckpointWriter(spec, self.recipe, self.splits, self.normalization, self.device, self.bf16)
        self._initialize(retrained=False)

    def _seed_generators(self, *, retrained: bool) -> Generators:
        return Generators.seeded(self.spec.trainer.seed, self.index, self.device, retrained=retrained)

    def _initialize(self, *, retrained: bool) -> None:
        """Build a new network and its optimizer."""
        train = self.splits.train
        self.learner = Learner(
            self.spec,
            trace_network(self.spec.model, train.input_shape, len(train.class_names)),
            normalization=self.normalization,
            generators=self._seed_generators(retrained=retrained),
            device=self.device,
            bf16=self.bf16,
        )
        self.best: dict[str, Tensor] = {}  # weights of the best epoch, for `keep = "best"`

    @property
    def n_epochs(self) -> int:
        """Maximum number of epochs; when the member is trained again, the best number of epochs."""
        trainer = self.spec.trainer
        return best_epoch(self.first_history, trainer.monitor) + 1 if self.first_history else trainer.epochs

    def run(self, *, resume: bool) -> list[EpochFinished]:
        """Train the remaining epochs, write the checkpoint and the validation predictions, and return all epochs."""
        try:
            self._prepare()
            if resume and (self.folder / STATE_FILE).is_file():
                self._restore()
            else:
                remove_snapshots(self.folder)  # left by an earlier process
                remove_last_good(self.folder)
            self._train()
            if self.spec.trainer.keep == "retrained" and not self.first_history:
                self.first_history, self.history = self.history, []
                self._initialize(retrained=True)
                self._save_state()
                self._train()
            self._finish()
        except DivergedError as error:
            error.hint = "; ".join(filter(None, (error.hint, self._save_last_good())))
            raise
        return [*self.first_history, *self.history]

    def _train(self) -> None:
        self.reporter(
            MemberStarted(
                member=self.spec.name,
                epochs=self.n_epochs,
                steps_per_epoch=len(self.loader),
                first_epoch=len(self.history) + 1,
                parameters=self.learner.parameters,
                device=device_name(self.device),
                precision="bf16" if self.bf16 else "fp32",
                retrained=bool(self.first_history),
                steps_done=self.progress.steps if self.progress else 0,
            )
        )
        try:
            while not self._is_done():
                self._train_epoch(len(self.history))
        except StopRequest:
            if self.can_be_saved:
                self._save_state()
            raise

    def _is_done(self) -> bool:
        trainer = self.spec.trainer
        if len(self.history) >= self.n_epochs:
            return True
        may_stop_early = trainer.patience is not None and self.history and not self.first_history
        return bool(may_stop_early and is_stalled(self.history, trainer.monitor, trainer.patience or 0))

    def _train_epoch(self, epoch: int) -> None:
        """Train the remaining steps of an epoch, then validate."""
        if self.progress is None:
            order = self.learner.generators.order.get_state()
            losses = torch.zeros(len(self.loader), device=self.device)
            self.progress = EpochProgress(order, losses, torch.zeros((), dtype=torch.int64, device=self.device))
        progress = self.progress
        self._take_steps(epoch, progress)
        self._check_losses(epoch, progress)
        lr = self.schedule((epoch + 1) * len(self.loader) - 1)
        started = time.perf_counter()
        if self.unaugmented is not None and not progress.ended and self.learner.averages(epoch):
            self._save_state()  # a stop while averaging discards the partial average
            self.can_be_saved = False
            self.learner.end_epoch(epoch, self._reported(self.unaugmented.batches()))
            self.can_be_saved = True
        progress.ended = True
        validation_loss, validation_accuracy = self._validate()
        if validation_loss is not None:
            self.guard.check("validation loss", validation_loss, epoch=epoch, lr=lr)
        finished = EpochFinished(
            member=self.spec.name,
            epoch=epoch + 1,
            lr=lr,
            train_loss=self.loader.mean_over_images(progress.losses),
            train_accuracy=int(progress.correct) / self.loader.n_images,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            seconds=progress.seconds + time.perf_counter() - started,
            images_per_second=self.loader.n_images / progress.seconds,
            retrained=bool(self.first_history),
        )
        self._save_snapshot(epoch + 1, lr)
        self._end_epoch(finished)

    def _take_steps(self, epoch: int, progress: EpochProgress) -> None:
        """Take the remaining steps of an epoch. Wait for the device only to save, and after the last step."""
        if progress.steps == len(self.loader):
            return
        self.learner.model.train()
        seconds_before, started = progress.seconds, time.perf_counter()
        saved = started
        order = self.learner.generators.order
        order.set_state(progress.order)
        for images, labels in self.loader.epoch(order, skip=progress.steps):
            loss, logits = self.learner.step(images, labels, self.schedule(epoch * len(self.loader) + progress.steps))
            progress.losses[progress.steps] = loss
            progress.correct += (logits.argmax(dim=1) == labels).sum()
            progress.steps += 1
            progress.seconds = seconds_before + time.perf_counter() - started
            self.reporter(StepFinished(self.spec.name, progress.steps))
            if time.perf_counter() - saved > self.save_after and progress.steps < len(self.loader):
                self._save_state()
                saved = time.perf_counter()
        progress.correct.item()  # waits for the device
        progress.seconds = seconds_before + time.perf_counter() - started

    def _end_epoch(self, finished: EpochFinished) -> None:
        """Add an epoch to the history. Save the state if the last save was long enough ago."""
        trainer = self.spec.trainer
        self.history.append(finished)
        self.progress = None
        if trainer.keep == "best" and best_epoch(self.history, trainer.monitor) + 1 == finished.epoch:
            self.best = self.learner.evaluated_weights()
        if not self._is_done() and time.perf_counter() >= self.next_save:
            self._save_state()
        self.reporter(finished)

    def _check_losses(self, epoch: int, progress: EpochProgress) -> None:
        """Raise an error that names the step if a loss is not finite."""
        for step in (~progress.losses[: progress.steps].isfinite()).nonzero().flatten().tolist():
            lr = self.schedule(epoch * len(self.loader) + step)
            self.guard.check(f"loss of step {step + 1}", float(progress.losses[step]), epoch=epoch, lr=lr)

    def _validate(self) -> tuple[float | None, float | None]:
        """Return the loss and the accuracy on the validation images, with the weights that a checkpoint would have."""
        images = self.splits.validation
        if images is None or self.validation is None:
            return None, None
        with self.learner.evaluated():
            logits = self._predict(InferenceNetwork(self.learner.model, bf16=self.bf16), self.validation)
        labels = torch.from_numpy(images.labels)
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())

    def _predict(self, network: InferenceNetwork, images: DeviceLoader) -> Tensor:
        return predict_logits(network, self._reported(images.batches()), self.normalization).cpu()

    def _reported(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for images in batches:
            yield images
            self.reporter(BatchPredicted(self.spec.name))

    # --- checkpoints --------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._save_state()  # predicting many validation images takes time, and a stop must not lose the last epoch
        path = self._save_result(self.folder)
        remove_last_good(self.folder)
        (self.folder / STATE_FILE).unlink(missing_ok=True)  # a finished member does not need it
        self.reporter(MemberFinished(self.spec.name, path))

    def _save_last_good(self) -> str | None:
        """Write a checkpoint of the last saved weights after a divergence, and return a hint about it."""
        if not (self.folder / STATE_FILE).is_file():
            return None
        try:
            self._restore()
            path = self._save_result(self.folder / LAST_GOOD)
        except DivergedError:
            return "the last saved weights predict NaN, too, so they are not kept"
        except (FmcliError, OSError, MemoryError, RuntimeError) as error:  # report the divergence instead
            return f"the last saved weights could not be kept: {printable(error)}"
        return f"the last saved weights are in {printable(path.parent)}"

    def _save_result(self, folder: Path) -> Path:
        """Write the checkpoint of the trained member and return its path."""
        self.learner.model.load_state_dict(self.best or self.learner.evaluated_weights())
        epochs = best_epoch(self.history, self.spec.trainer.monitor) + 1 if self.best else len(self.history)
        return self._save_weights(folder, epochs, self.schedule(max(len(self.history) * len(self.loader) - 1, 0)))

    def _save_snapshot(self, epochs: int, lr: float) -> None:
        """Write a checkpoint if the recipe keeps snapshots and a cycle ends with this epoch."""
        number, remainder = divmod(epochs, epochs_per_snapshot(self.spec))
        if remainder == 0 and epochs < self.n_epochs:
            with self.learner.evaluated():
                self._save_weights(self.folder / snapshot_name(number), epochs, lr, number)

    def _save_weights(self, folder: Path, epochs: int, lr: float, snapshot: int | None = None) -> Path:
        """Write the network's current weights and their validation predictions."""
        self.guard.check("largest weight", self.learner.max_weight, epoch=epochs - 1, lr=lr)
        network = InferenceNetwork(self.learner.model, bf16=self.bf16)
        logits = None if self.validation is None else self._predict(network, self.validation)
        if logits is not None:
            self.guard.check("largest validation logit", float(logits.abs().max()), epoch=epochs - 1, lr=lr)
        path = self.writer.save(folder, self.learner.model, logits, epochs=epochs, snapshot=snapshot)
        self.reporter(CheckpointSaved(path))
        return path

    # --- resuming -----------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        """Write the state that `_restore` reads, and the history so far."""
        started = time.perf_counter()
        epoch = len(self.history)
        steps = 0 if self.progress is None else self.progress.steps
        if self.progress is not None:
            self._check_losses(epoch, self.progress)
        lr = self.schedule(max(epoch * len(self.loader) + steps - 1, 0))
        self.guard.check("largest weight", self.learner.max_weight, epoch=epoch, lr=lr)
        state = TrainingState(
            fingerprint=self.fingerprint,
            retrained=bool(self.first_history),
            history=[*self.first_history, *self.history],
            tensors=self.learner.state() | with_prefix("best", self.best),
            progress=self.progress,
        )
        path = self.folder / STATE_FILE
        if state.history:
            write_history(self.folder, state.history)
        save_state(path, state)
        now = time.perf_counter()
        self.next_save = now + (now - started) / MAX_SAVING_SHARE
        self.reporter(CheckpointSaved(path))

    def _restore(self) -> None:
        """Load the saved state of an earlier process."""
        state = load_state(self.folder / STATE_FILE)
        check_fingerprint(self.fingerprint, state.fingerprint, STARTED, member=self.spec.name, folder=self.folder)
        if state.retrained:
            self._initialize(retrained=True)
            self.first_history = [epoch for epoch in state.history if not epoch.retrained]
        self.history = [epoch for epoch in state.history if epoch.retrained == state.retrained]
        self.learner.load(state.tensors)
        self.progress = None if state.progress is None else state.progress.on_device(self.device)
        self.best = {name: tensor.to(self.device) for name, tensor in without_prefix("best", state.tensors).items()}
        for number in range(1, min(len(self.history), self.n_epochs - 1) // epochs_per_snapshot(self.spec) + 1):
            check_snapshot(number, self.spec, self.folder, self.fingerprint)
