"""The training loop: one member, from its recipe and images to its checkpoints."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fmcli.checkpoints.history import best_epoch, is_stalled, read_history, write_history
from fmcli.checkpoints.layout import (
    LAST_GOOD,
    MODEL_FILE,
    remove_last_good,
    remove_snapshots,
    snapshot_name,
)
from fmcli.checkpoints.tensors import with_prefix, without_prefix
from fmcli.data import (
    DeviceLoader,
    ImageSet,
    Normalization,
    Splits,
    draw_sample,
    evaluation_loader,
    explain_worker_error,
    is_worker_error,
    resolve_normalization,
)
from fmcli.data.albumentations import AlbumentationsAugment
from fmcli.errors import DeviceError, DivergedError, FmcliError, printable
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
from fmcli.hardware.device import device_name, is_out_of_memory, use_bf16
from fmcli.hardware.memory import keep_freed_memory
from fmcli.networks import InferenceNetwork, disable_tf32, predict_logits
from fmcli.recipe import MemberSpec, Recipe
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.learner import Learner
from fmcli.training.optim import Schedule, build_schedule
from fmcli.training.resume import check_snapshot, check_trained
from fmcli.training.rng import Generators
from fmcli.training.saving import CheckpointWriter
from fmcli.training.state import (
    STATE_FILE,
    EpochProgress,
    TrainingState,
    load_state,
    save_state,
)

SAVE_AFTER = 300.0  # seconds, after which a long epoch is saved within itself
_SAVING = 0.05  # of the time, at most, that saving after short epochs may take


def train_member(
    recipe: Recipe,
    name: str,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    save_after: float = SAVE_AFTER,
    reporter: Reporter = ignore,
) -> list[EpochFinished]:
    """Train one member of a recipe and leave its checkpoint, and those of its snapshots.

    Args:
        recipe: The recipe.
        name: Which member.
        splits: The images.
        folder: Where its files go.
        device: Where to train.
        resume: Go on from the state that an earlier process left; a finished member is not trained again.
        save_after: Seconds, after which a long epoch is saved within itself, and again.
        reporter: Told of what happens.

    Returns:
        The history, an entry an epoch; with `keep = "retrained"`, of both trainings.

    Raises:
        RecipeError: The network or the augmentation cannot be built for these images.
        CheckpointError: The state to resume from is of another recipe or other images, or is damaged.
        DeviceError: The device has too little memory.
        DivergedError: The loss is no longer finite. The weights that were saved last, if any, are left in `last-good`.
        FmcliError: A file cannot be written.
    """
    training = _Training(recipe, name, splits, folder, device, save_after, reporter)
    if resume and (folder / MODEL_FILE).is_file():
        check_trained(training.spec, folder, training.fingerprint)
        (folder / STATE_FILE).unlink(missing_ok=True)  # left by a process killed between the two
        reporter(MemberFinished(name, folder / MODEL_FILE, already_trained=True))
        return read_history(folder)
    try:
        training.prepare()
        if resume and (folder / STATE_FILE).is_file():
            training.restore()
        else:
            remove_snapshots(folder)  # of an earlier training
            remove_last_good(folder)
        training.run()
    except DivergedError as error:
        error.hint = "; ".join(filter(None, (error.hint, training.leave_last_good())))
        raise
    except (MemoryError, RuntimeError) as error:
        if is_worker_error(error):
            raise explain_worker_error(error) from error
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{device_name(device)} has too little memory for member {name}",
            hint="a smaller --set trainer.batch_size=… needs less; so do members one by one (--jobs 1)",
        ) from error
    return [*training.before, *training.history]


class _Training:
    """A member on its way: what `train_member` sets up once and each epoch moves on."""

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
        names = [member.name for member in recipe.members]
        self.spec: MemberSpec = recipe.members[names.index(name)]
        self.recipe = recipe
        self.index = names.index(name)
        self.splits, self.folder, self.device = splits, folder, device
        self.save_after, self.reporter = save_after, reporter
        self.bf16 = use_bf16(self.spec.trainer.precision, device)
        self.progress: EpochProgress | None = None  # of an epoch that is begun
        self.can_be_saved = True
        self.save_due = 0.0  # when the next epoch that ends is to be saved, by `time.perf_counter`
        self.history: list[EpochFinished] = []
        self.before: list[EpochFinished] = []  # of the first training, once a network is trained afresh
        self.fingerprint = Fingerprint.of(self.spec, recipe, splits, device, bf16=self.bf16)

    def prepare(self) -> None:
        """Build everything that the loop needs."""
        keep_freed_memory()
        disable_tf32()
        spec, train = self.spec, self._sample()
        pipeline = spec.augment.albumentations
        self.loader = DeviceLoader(
            train,
            batch_size=len(train) if spec.trainer.full_batch else spec.trainer.batch_size,
            device=self.device,
            drop_last=spec.trainer.drop_last,
            transform=AlbumentationsAugment(pipeline, train.input_shape) if pipeline else None,
        )
        self.unaugmented = self._evaluation_loader(train if spec.trainer.swa is not None else None)
        self.validation = self._evaluation_loader(self.splits.validation)
        self.normalization: Normalization = resolve_normalization(self.recipe.data.normalize, self.splits.train)
        self.schedule: Schedule = build_schedule(
            spec.schedule, lr=spec.optimizer.lr, epochs=spec.trainer.epochs, steps_per_epoch=len(self.loader)
        )
        self.outcome = CheckpointWriter(spec, self.recipe, self.splits, self.normalization, self.device, self.bf16)
        self._start(retrained=False)

    def _generators(self, *, retrained: bool = False) -> Generators:
        return Generators.seeded(self.spec.trainer.seed, self.index, self.device, retrained=retrained)

    def _sample(self) -> ImageSet:
        """Return the images that this member trains on: all, or its own bootstrap sample."""
        train, trainer = self.splits.train, self.spec.trainer
        if trainer.bagging is None:
            return train
        return draw_sample(train, trainer.sample_size(len(train)), self._generators().sample)

    def _evaluation_loader(self, images: ImageSet | None) -> DeviceLoader | None:
        return None if images is None else evaluation_loader(images, self.device)

    def _start(self, *, retrained: bool) -> None:
        """Set a new network and its optimizer at their beginning."""
        train = self.splits.train
        self.learner = Learner(
            self.spec,
            train.input_shape,
            len(train.class_names),
            normalization=self.normalization,
            generators=self._generators(retrained=retrained),
            device=self.device,
            bf16=self.bf16,
        )
        self.best: dict[str, Tensor] = {}  # what `keep = "best"` would save, by name

    @property
    def n_epochs(self) -> int:
        """For how many epochs to train, at most: afresh, for as many as were best before."""
        trainer = self.spec.trainer
        return best_epoch(self.before, trainer.monitor) + 1 if self.before else trainer.epochs

    def run(self) -> None:
        """Train the epochs that are left, then leave checkpoint and validation predictions."""
        self._train()
        if self.spec.trainer.keep == "retrained" and not self.before:
            self.before, self.history = self.history, []
            self._start(retrained=True)
            self._save_state()
            self._train()
        self._finish()

    def _train(self) -> None:
        spec = self.spec
        self.reporter(
            MemberStarted(
                member=spec.name,
                epochs=self.n_epochs,
                steps_per_epoch=len(self.loader),
                first_epoch=len(self.history) + 1,
                parameters=self.learner.parameters,
                device=device_name(self.device),
                precision="bf16" if self.bf16 else "fp32",
                retrained=bool(self.before),
                steps_done=self.progress.steps if self.progress else 0,
            )
        )
        try:
            while not self._is_done():
                self._epoch(len(self.history))
        except StopRequest:
            if self.can_be_saved:
                self._save_state()
            raise

    @contextmanager
    def _unsaved(self) -> Iterator[None]:
        """Let a stop within lose what is done within."""
        self.can_be_saved = False
        yield
        self.can_be_saved = True

    def _is_done(self) -> bool:
        trainer = self.spec.trainer
        if len(self.history) >= self.n_epochs:
            return True
        may_stop_early = trainer.patience is not None and self.history and not self.before
        return bool(may_stop_early and is_stalled(self.history, trainer.monitor, trainer.patience or 0))

    def _epoch(self, epoch: int) -> None:
        """Train and validate one epoch, or what is left of it. The device is waited for once, at its end."""
        progress = self.progress = self.progress or self._begin_epoch()
        self._take_steps(epoch, progress)
        self._check_losses(epoch, progress)
        lr = self.schedule((epoch + 1) * len(self.loader) - 1)
        started = time.perf_counter()
        if self.unaugmented is not None and not progress.ended and self.learner.averages(epoch):
            self._save_state()  # what follows is not saved half-done
            with self._unsaved():
                self.learner.end_epoch(epoch, self._announced(self.unaugmented.batches()))
        progress.ended = True
        validation_loss, validation_accuracy = self._validate()
        if validation_loss is not None:
            self._check_finite("validation loss", validation_loss, epoch, lr)
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
            retrained=bool(self.before),
        )
        self._save_snapshot(epoch + 1, lr)
        self._end_epoch(finished)

    def _begin_epoch(self) -> EpochProgress:
        return EpochProgress(
            order=self.learner.generators.order.get_state(),
            losses=torch.zeros(len(self.loader), device=self.device),
            correct=torch.zeros((), dtype=torch.int64, device=self.device),
        )

    def _take_steps(self, epoch: int, progress: EpochProgress) -> None:
        """Take the steps that are left of an epoch, and wait for the device."""
        if progress.steps == len(self.loader):
            return
        self.learner.model.train()
        before, started = progress.seconds, time.perf_counter()
        saved = started
        order = self.learner.generators.order
        order.set_state(progress.order)
        for images, labels in self.loader.epoch(order, skip=progress.steps):
            loss, logits = self.learner.step(images, labels, self.schedule(epoch * len(self.loader) + progress.steps))
            progress.losses[progress.steps] = loss
            progress.correct += (logits.argmax(dim=1) == labels).sum()
            progress.steps += 1
            progress.seconds = before + time.perf_counter() - started
            self.reporter(StepFinished(self.spec.name, progress.steps))
            if time.perf_counter() - saved > self.save_after and progress.steps < len(self.loader):
                self._save_state()
                saved = time.perf_counter()
        progress.correct.item()  # waits for the device
        progress.seconds = before + time.perf_counter() - started

    def _end_epoch(self, finished: EpochFinished) -> None:
        """Take an epoch into the history and leave what it is to leave."""
        trainer = self.spec.trainer
        self.history.append(finished)
        self.progress = None
        if trainer.keep == "best" and best_epoch(self.history, trainer.monitor) + 1 == finished.epoch:
            self.best = self.learner.evaluated_weights()
        if not self._is_done() and time.perf_counter() >= self.save_due:
            self._save_state()
        self.reporter(finished)

    def _check_losses(self, epoch: int, progress: EpochProgress) -> None:
        """Refuse to go on from a loss that is not finite, naming the step."""
        wrong = (~progress.losses[: progress.steps].isfinite()).nonzero()
        if len(wrong):
            step = int(wrong[0])
            lr = self.schedule(epoch * len(self.loader) + step)
            self._check_finite(f"loss of step {step + 1}", float(progress.losses[step]), epoch, lr)

    def _check_weights(self, epoch: int, lr: float) -> None:
        self._check_finite("largest weight", self.learner.largest_weight, epoch, lr)

    def _check_finite(self, what: str, value: float, epoch: int, lr: float) -> None:
        if not np.isfinite(value):
            raise DivergedError(
                f"member {self.spec.name}: the {what} is {value} in epoch {epoch + 1} at learning rate {lr:.3g}",
                hint=f"a lower learning rate may hold: --member {self.spec.name} --set {self._key_of_lr}=… --output …",
            )

    @property
    def _key_of_lr(self) -> str:
        """What `--set` calls the learning rate: copies of a member have one table, of its name without their number."""
        if all(member.optimizer == self.spec.optimizer for member in self.recipe.members):
            return "optimizer.lr"
        base, _, number = self.spec.name.rpartition("-")
        is_copy = number.isdigit() and {f"{base}-1", f"{base}-2"} <= {member.name for member in self.recipe.members}
        return f"members.{base if is_copy else self.spec.name}.optimizer.lr"

    def _validate(self) -> tuple[float | None, float | None]:
        """Return loss and accuracy on the validation images, of the averaged weights where there are any."""
        images = self.splits.validation
        if images is None or self.validation is None:
            return None, None
        with self.learner.evaluated():
            logits = self._predict(InferenceNetwork(self.learner.model, bf16=self.bf16), self.validation)
        labels = torch.from_numpy(images.labels)
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())

    def _predict(self, network: InferenceNetwork, images: DeviceLoader) -> Tensor:
        return predict_logits(network, self._announced(images.batches()), self.normalization).cpu()

    def _announced(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for images in batches:
            yield images
            self.reporter(BatchPredicted(self.spec.name))

    # --- what is left behind ------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._save_state()  # what follows takes a while where validation images are many
        path = self._save_result(self.folder)
        remove_last_good(self.folder)
        (self.folder / STATE_FILE).unlink(missing_ok=True)  # only what is unfinished needs it
        self.reporter(MemberFinished(self.spec.name, path))

    def leave_last_good(self) -> str | None:
        """Leave the weights as they were saved last, before the loss went wrong; return what can be said of that."""
        if not (self.folder / STATE_FILE).is_file():
            return None
        try:
            self.restore()
            path = self._save_result(self.folder / LAST_GOOD)
        except DivergedError:
            return "what was saved last before that answers with NaN, too, and is not kept"
        except (FmcliError, OSError, MemoryError, RuntimeError) as error:  # the divergence is what is to be told
            return f"what was saved last before that cannot be kept: {printable(error)}"
        return f"what was saved last before that is in {printable(path.parent)}"

    def _save_result(self, folder: Path) -> Path:
        """Leave the weights that training has come to, and return their file."""
        self.learner.model.load_state_dict(self.best or self.learner.evaluated_weights())
        epochs = best_epoch(self.history, self.spec.trainer.monitor) + 1 if self.best else len(self.history)
        return self._save_weights(folder, epochs, self.schedule(max(len(self.history) * len(self.loader) - 1, 0)))

    def _save_snapshot(self, epochs: int, lr: float) -> None:
        """Keep the weights of a cycle that ends with this epoch, where the recipe says so."""
        number, since = divmod(epochs, self._epochs_per_snapshot)
        if since == 0 and epochs < self.n_epochs:
            with self.learner.evaluated():
                self._save_weights(self.folder / snapshot_name(number), epochs, lr, number)

    @property
    def _epochs_per_snapshot(self) -> int:
        """After how many epochs a snapshot is due; the last is the member itself."""
        schedule, trainer = self.spec.schedule, self.spec.trainer
        if trainer.keep == "snapshots" and isinstance(schedule, CyclicSchedule):
            return trainer.epochs // schedule.cycles
        return trainer.epochs

    def _save_weights(self, folder: Path, epochs: int, lr: float, snapshot: int | None = None) -> Path:
        """Leave the weights that the network has now, and their validation predictions."""
        self._check_weights(epochs - 1, lr)
        network = InferenceNetwork(self.learner.model, bf16=self.bf16)
        logits = None if self.validation is None else self._predict(network, self.validation)
        if logits is not None:
            self._check_finite("largest validation logit", float(logits.abs().max()), epochs - 1, lr)
        path = self.outcome.save(folder, self.learner.model, logits, epochs=epochs, snapshot=snapshot)
        self.reporter(CheckpointSaved(path))
        return path

    # --- resuming -----------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        """Leave what `restore` takes over, and the history up to here."""
        started = time.perf_counter()
        epoch = len(self.history)
        steps = 0 if self.progress is None else self.progress.steps
        if self.progress is not None:
            self._check_losses(epoch, self.progress)
        self._check_weights(epoch, self.schedule(max(epoch * len(self.loader) + steps - 1, 0)))
        state = TrainingState(
            fingerprint=self.fingerprint,
            retrained=bool(self.before),
            history=[*self.before, *self.history],
            updates=self.learner.updates,
            tensors=self.learner.state() | with_prefix("best", self.best),
            progress=self.progress,
        )
        path = self.folder / STATE_FILE
        if state.history:
            write_history(self.folder, state.history)
        save_state(path, state)
        now = time.perf_counter()
        self.save_due = now + (now - started) / _SAVING
        self.reporter(CheckpointSaved(path))

    def restore(self) -> None:
        """Take over the state that an earlier process left."""
        state = load_state(self.folder / STATE_FILE)
        self.fingerprint.check(state.fingerprint, member=self.spec.name, folder=self.folder)
        if state.retrained:
            self._start(retrained=True)
            self.before = [epoch for epoch in state.history if not epoch.retrained]
        self.history = [epoch for epoch in state.history if epoch.retrained == state.retrained]
        self.learner.load(state.tensors, state.updates)
        self.progress = self._on_device(state.progress)
        self.best = {name: tensor.to(self.device) for name, tensor in without_prefix("best", state.tensors).items()}
        for number in range(1, min(len(self.history), self.n_epochs - 1) // self._epochs_per_snapshot + 1):
            check_snapshot(number, self.spec, self.folder, self.fingerprint)

    def _on_device(self, progress: EpochProgress | None) -> EpochProgress | None:
        if progress is None:
            return None
        return replace(progress, losses=progress.losses.to(self.device), correct=progress.correct.to(self.device))
