"""The training loop: one member, from its recipe and images to a checkpoint."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.augment import AlbumentationsAugment, augment
from fmcli.checkpoint import MODEL_FILE, Header, read_header, save_checkpoint, versions
from fmcli.choices import SPLITS
from fmcli.data import DeviceLoader, ImageSet, Normalization, Splits, resolve_normalization
from fmcli.data.pictures import find_background
from fmcli.device import is_out_of_memory, name_of, use_bf16
from fmcli.errors import CheckpointError, DeviceError, DivergedError, printable
from fmcli.events import (
    CheckpointSaved,
    EpochFinished,
    MemberFinished,
    MemberStarted,
    Reporter,
    StepFinished,
    ignore,
)
from fmcli.generators import Generators
from fmcli.history import best_epoch, is_stalled, read_history, write_history
from fmcli.libraries import keep_freed_memory
from fmcli.models import add_l2_gradients, build_model, predict_logits, set_dropout_generator
from fmcli.optim import Schedule, WeightAverage, build_optimizer, build_schedule, set_learning_rate
from fmcli.predictions import Predictions, predictions_file, save_predictions
from fmcli.recipe import DataSpec, EnsembleSpec, MemberSpec, Recipe, ReferenceSpec, recipe_digest
from fmcli.recipe.layers import expand_layers
from fmcli.tensors import (
    flatten_state,
    load_tensors,
    save_tensors,
    unflatten_state,
    with_prefix,
    without_prefix,
)

STATE_FILE = "state.safetensors"
VALIDATION_FILE = predictions_file("validation")
STATE_FORMAT = "fmcli-state-2"
_EVALUATION_BATCH = 500  # images; more gains nothing on a CPU


def train_member(
    recipe: Recipe,
    name: str,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    reporter: Reporter = ignore,
) -> list[EpochFinished]:
    """Train one member of a recipe and leave its checkpoint.

    Args:
        recipe: The recipe.
        name: Which member.
        splits: The images.
        folder: Where its files go.
        device: Where to train.
        resume: Go on from the state that an earlier process left; a finished member is not trained again.
        reporter: Told of what happens.

    Returns:
        The history, an entry an epoch; with `keep = "retrained"`, of both trainings.

    Raises:
        RecipeError: The network or the augmentation cannot be built for these images.
        CheckpointError: The state to resume from is of another recipe or other images, or is damaged.
        DeviceError: The device has too little memory.
        DivergedError: The loss is no longer finite.
        FmcliError: A file cannot be written.
    """
    training = _Training(recipe, name, splits, folder, device, reporter)
    if resume and (folder / MODEL_FILE).is_file():
        header = read_header(folder)
        training.check_same(header.recipe_digest, header.data_digests["train"])
        (folder / STATE_FILE).unlink(missing_ok=True)  # left by a process killed between the two
        reporter(MemberFinished(name, folder / MODEL_FILE, already=True))
        return read_history(folder)
    try:
        training.prepare()
        if resume and (folder / STATE_FILE).is_file():
            training.restore()
        training.run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{name_of(device)} has too little memory for member {name}",
            hint="a smaller --set trainer.batch_size=… needs less",
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
        reporter: Reporter,
    ) -> None:
        names = [member.name for member in recipe.members]
        self.spec: MemberSpec = recipe.members[names.index(name)]
        self.data: DataSpec = recipe.data
        self.ensemble: EnsembleSpec = recipe.ensemble
        self.reference: ReferenceSpec | None = recipe.reference
        self.place = names.index(name)
        self.splits, self.folder, self.device, self.reporter = splits, folder, device, reporter
        self.digest = recipe_digest(self.spec, self.data)
        self.bf16 = use_bf16(self.spec.trainer.precision, device)
        self.history: list[EpochFinished] = []
        self.before: list[EpochFinished] = []  # of the first training, once a network is trained afresh
        self.train_digest = splits.train.digest()

    def prepare(self) -> None:
        """Build everything that the loop needs."""
        keep_freed_memory()
        spec, train = self.spec, self.splits.train
        pipeline = spec.augment.albumentations
        self.loader = DeviceLoader(
            train,
            batch_size=len(train) if spec.trainer.full_batch else spec.trainer.batch_size,
            device=self.device,
            drop_last=spec.trainer.drop_last,
            transform=AlbumentationsAugment(pipeline, train.input_shape) if pipeline else None,
        )
        self.validation = self._evaluation_loader(self.splits.validation)
        self.normalization: Normalization = resolve_normalization(self.data.normalize, train)
        self.schedule: Schedule = build_schedule(
            spec.schedule, lr=spec.optimizer.lr, epochs=spec.trainer.epochs, steps_per_epoch=len(self.loader)
        )
        self._start(afresh=False)

    def _start(self, *, afresh: bool) -> None:
        """Set a new network and its optimizer at their beginning."""
        spec, train = self.spec, self.splits.train
        self.generators = Generators.seeded(spec.trainer.seed, self.place, self.device, afresh=afresh)
        n_classes = len(train.class_names)
        model = build_model(
            expand_layers(spec.model, n_classes, train.input_shape),
            train.input_shape,
            n_classes,
            init=spec.model.init,
            generator=self.generators.weights,
        )
        self.model: nn.Sequential = model.to(self.device)
        set_dropout_generator(self.model, self.generators.dropout)
        self.optimizer = build_optimizer(spec.optimizer, self.model)
        decay = spec.trainer.weight_average
        self.average = WeightAverage(self.model, decay) if decay is not None else None
        self.best: dict[str, Tensor] = {}  # what `keep = "best"` would save, by name

    def _evaluation_loader(self, images: ImageSet | None) -> DeviceLoader | None:
        return DeviceLoader(images, batch_size=_EVALUATION_BATCH, device=self.device) if images else None

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
            self._start(afresh=True)
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
                parameters=sum(parameter.numel() for parameter in self.model.parameters()),
                device=name_of(self.device),
                precision="bf16" if self.bf16 else "fp32",
                afresh=bool(self.before),
            )
        )
        while not self._is_done():
            finished = self._epoch(len(self.history))
            self.history.append(finished)
            if spec.trainer.keep == "best" and best_epoch(self.history, spec.trainer.monitor) + 1 == finished.epoch:
                self.best = self._evaluated_weights()
            write_history(self.folder, [*self.before, *self.history])
            if not self._is_done():
                self._save_state()
            self.reporter(finished)

    def _is_done(self) -> bool:
        trainer = self.spec.trainer
        if len(self.history) >= self.n_epochs:
            return True
        may_stop_early = trainer.patience is not None and self.history and not self.before
        return bool(may_stop_early and is_stalled(self.history, trainer.monitor, trainer.patience or 0))

    def _epoch(self, epoch: int) -> EpochFinished:
        """Train and validate one epoch. The device is waited for once, at its end."""
        started = time.perf_counter()
        self.model.train()
        step = epoch * len(self.loader)
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for place, (images, labels) in enumerate(self.loader.epoch(self.generators.order), start=1):
            set_learning_rate(self.optimizer, self.schedule(step))
            loss, logits = self._step(images, labels)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            step += 1
            self.reporter(StepFinished(self.spec.name, place))
        mean_loss = float(loss_sum) / self.loader.n_images  # waits for the device
        trained_for = time.perf_counter() - started
        lr = self.schedule(step - 1)
        self._check_finite("loss", mean_loss, epoch, lr)
        validation_loss, validation_accuracy = self._validate()
        if validation_loss is not None:
            self._check_finite("validation loss", validation_loss, epoch, lr)
        return EpochFinished(
            member=self.spec.name,
            epoch=epoch + 1,
            lr=lr,
            train_loss=mean_loss,
            train_accuracy=int(correct) / self.loader.n_images,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            seconds=time.perf_counter() - started,
            images_per_second=self.loader.n_images / trained_for,
            afresh=bool(self.before),
        )

    def _check_finite(self, what: str, value: float, epoch: int, lr: float) -> None:
        if not np.isfinite(value):
            raise DivergedError(
                f"member {self.spec.name}: the {what} is {value} in epoch {epoch + 1} at learning rate {lr:.3g}",
                hint="a lower learning rate may hold: --set optimizer.lr=…",
            )

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return the mean cross-entropy and the logits, both without gradient."""
        inputs = self.normalization(augment(images, self.spec.augment, self.generators.augment))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.model(inputs)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.spec.trainer.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        add_l2_gradients(self.model)
        if self.spec.trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.trainer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return loss.detach(), logits.detach()

    def _validate(self) -> tuple[float | None, float | None]:
        """Return loss and accuracy on the validation images, of the averaged weights where there are any."""
        images = self.splits.validation
        if images is None or self.validation is None:
            return None, None
        with self._averaged():
            logits = predict_logits(self.model, self.validation.batches(), self.normalization, bf16=self.bf16).cpu()
        labels = torch.from_numpy(images.labels)
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())

    def _averaged(self) -> AbstractContextManager[None]:
        """Let the network have the averaged weights for a while, where there is an average."""
        return nullcontext() if self.average is None else self.average.applied()

    def _evaluated_weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights that validation was done with."""
        with self._averaged():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def _finish(self) -> None:
        self.model.load_state_dict(self.best or self._evaluated_weights())
        largest = torch.stack([parameter.detach().abs().max() for parameter in self.model.parameters()]).max()
        self._check_finite("largest weight", float(largest), len(self.history) - 1, self.history[-1].lr)
        header = self._header()
        for split in SPLITS:  # those of earlier weights
            (self.folder / predictions_file(split)).unlink(missing_ok=True)
        self._save_validation_predictions()
        path = self.folder / MODEL_FILE
        save_checkpoint(path, self.model, header)
        (self.folder / STATE_FILE).unlink(missing_ok=True)  # only what is unfinished needs it
        self.reporter(CheckpointSaved(path))
        self.reporter(MemberFinished(self.spec.name, path))

    def _save_validation_predictions(self) -> None:
        images = self.splits.validation
        if images is None or self.validation is None:
            return
        logits = predict_logits(self.model, self.validation.batches(), self.normalization).cpu()
        predictions = Predictions(
            logits=logits.numpy(),
            labels=images.labels,
            class_names=images.class_names,
            member=self.spec.name,
            split="validation",
            data_digest=images.digest(),
            recipe_digest=self.digest,
        )
        save_predictions(self.folder / VALIDATION_FILE, predictions)

    def _header(self) -> Header:
        train = self.splits.train
        return Header(
            member=self.spec,
            data=self.data,
            ensemble=self.ensemble,
            reference=self.reference,
            input_shape=train.input_shape,
            class_names=train.class_names,
            mean=self.normalization.mean,
            std=self.normalization.std,
            background=find_background(train.images),
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            epochs=best_epoch(self.history, self.spec.trainer.monitor) + 1 if self.best else len(self.history),
            data_digests={name: images.digest() for name, images in self.splits.present().items()},
            recipe_digest=self.digest,
            versions=versions(),
            trained_on={
                "device": name_of(self.device),
                "precision": "bf16" if self.bf16 else "fp32",
                "threads": str(torch.get_num_threads()),
            },
        )

    # --- resuming -----------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        tensors = with_prefix("model", self.model.state_dict()) | with_prefix("best", self.best)
        tensors |= flatten_state(self.optimizer.state_dict()["state"], "optimizer") | self.generators.state()
        updates = 0
        if self.average is not None:
            tensors |= with_prefix("average", self.average.state_dict())
            updates = self.average.updates
        metadata = {
            "format": STATE_FORMAT,
            "recipe_digest": self.digest,
            "data_digest": self.train_digest,
            "updates": str(updates),
            "afresh": "true" if self.before else "false",
            "device": self.device.type,
            "history": json.dumps([asdict(epoch) for epoch in [*self.before, *self.history]]),
        }
        path = self.folder / STATE_FILE
        save_tensors(path, tensors, metadata)
        self.reporter(CheckpointSaved(path))

    def restore(self) -> None:
        """Take over the state that an earlier process left after an epoch."""
        path = self.folder / STATE_FILE
        metadata, tensors = load_tensors(path)
        if metadata.get("format") != STATE_FORMAT:
            raise CheckpointError(f"{printable(path)} is not a training state of this fmcli")
        self.check_same(metadata["recipe_digest"], metadata["data_digest"])
        if metadata["device"] != self.device.type:
            raise CheckpointError(
                f"member {self.spec.name} was begun on {metadata['device']}; its random numbers cannot go on "
                f"on {self.device.type}",
                hint=f"--device {metadata['device']}, or train afresh with --overwrite",
            )
        epochs = [EpochFinished(**entry) for entry in json.loads(metadata["history"])]
        afresh = metadata["afresh"] == "true"
        if afresh:
            self._start(afresh=True)
            self.before = [epoch for epoch in epochs if not epoch.afresh]
        self.history = [epoch for epoch in epochs if epoch.afresh == afresh]
        self.model.load_state_dict(without_prefix("model", tensors))
        self.best = {name: tensor.to(self.device) for name, tensor in without_prefix("best", tensors).items()}
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": self._laid_out(unflatten_state(tensors, "optimizer"))})
        self.generators.load(tensors)
        if self.average is not None:
            self.average.load_state_dict(without_prefix("average", tensors), int(metadata["updates"]))

    def _laid_out(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Give moments the memory layout of their weights: fused optimizers walk through both side by side."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {
            place: {
                name: torch.empty_like(parameters[place]).copy_(tensor)
                if tensor.shape == parameters[place].shape
                else tensor
                for name, tensor in table.items()
            }
            for place, table in state.items()
        }

    def check_same(self, recipe_digest: str, data_digest: str) -> None:
        """Refuse a state or checkpoint of another recipe or other training images.

        Raises:
            CheckpointError: It is.
        """
        if data_digest != self.train_digest:
            raise CheckpointError(
                f"member {self.spec.name} in {printable(self.folder)} was begun on other training images",
                hint="bring the data back, or train afresh with --overwrite",
            )
        if recipe_digest != self.digest:
            raise CheckpointError(
                f"member {self.spec.name} in {printable(self.folder)} was begun with another recipe",
                hint="resume with the recipe.toml of the run, or train afresh with --overwrite",
            )
