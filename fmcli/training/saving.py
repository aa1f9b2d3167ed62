"""Save a member while it is trained: its state, its snapshots and its final weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from fmcli.checkpoints.history import write_history
from fmcli.checkpoints.layout import LAST_GOOD, remove_last_good, remove_snapshots, snapshot_name
from fmcli.errors import DivergedError, FmcliError, printable
from fmcli.events import CheckpointSaved, InitialWeightsLoaded, StopRequest
from fmcli.recipe import MemberSpec
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.training.checkpoint_writer import write_checkpoint
from fmcli.training.divergence import DivergenceGuard
from fmcli.training.fingerprint import STARTED, check_fingerprint, check_snapshot
from fmcli.training.member_setup import MemberSetup
from fmcli.training.state import STATE_FILE, TrainingState, load_state, save_state
from fmcli.training.validation import Validator

MAX_SAVING_SHARE = 0.05  # maximum share of the time that is spent on saving after short epochs


class Saver:
    """Write and read the files of a member in training.

    Args:
        setup: The member.
        validator: Predicts the validation images with the weights to save.
        guard: Refuses weights that are not finite.
        save_after: Seconds between saves within one epoch.
    """

    def __init__(self, setup: MemberSetup, validator: Validator, guard: DivergenceGuard, *, save_after: float) -> None:
        self._setup, self._validator, self._guard, self._save_after = setup, validator, guard, save_after
        self._state_file = setup.folder / STATE_FILE
        self._epochs_per_snapshot = _epochs_per_snapshot(setup.spec)
        self._saved_at = time.perf_counter()
        self._next_save = 0.0  # earliest time of the next save after an epoch
        self._can_save = True

    # --- start, stop and resume ---------------------------------------------------------------------------

    def start(self, *, resume: bool) -> TrainingState:
        """Return the state that an earlier process saved, or a new one.

        Args:
            resume: Use the saved state, if there is one. Otherwise, the files of the earlier process are removed.

        Raises:
            CheckpointError: The saved state or a snapshot is damaged, or belongs to another recipe or other images.
        """
        if resume and self._state_file.is_file():
            return self._restore()
        remove_snapshots(self._setup.folder)
        remove_last_good(self._setup.folder)
        learner, path = self._setup.build_learner(), self._setup.spec.model.initial_weights
        if path is not None:
            self._setup.reporter(InitialWeightsLoaded(self._setup.spec.name, path, learner.random_parameters))
        return TrainingState(learner)

    def _restore(self) -> TrainingState:
        setup = self._setup
        saved = load_state(self._state_file)
        check_fingerprint(setup.fingerprint, saved.fingerprint, STARTED, member=setup.spec.name, folder=setup.folder)
        state = saved.restore(setup.build_learner(retrained=saved.retrained), setup.device)
        n_snapshots = min(len(state.this_pass), state.n_epochs - 1) // self._epochs_per_snapshot
        for number in range(1, n_snapshots + 1):
            check_snapshot(number, setup.spec, setup.folder, setup.fingerprint)
        return state

    @contextmanager
    def saving_on_stop(self, state: TrainingState) -> Iterator[None]:
        """Save the state if training is stopped inside the block."""
        try:
            yield
        except StopRequest:
            if self._can_save:
                self.save_state(state)
            raise

    @contextmanager
    def discarding_on_stop(self, state: TrainingState) -> Iterator[None]:
        """Save the state before the block. If training is stopped inside the block, discard its partial work."""
        self.save_state(state)
        self._can_save = False
        yield
        self._can_save = True

    # --- state --------------------------------------------------------------------------------------------

    def save_within_epoch(self, state: TrainingState) -> None:
        """Save the state if the last save was long enough ago. The last step of an epoch is saved with the epoch."""
        is_due = time.perf_counter() - self._saved_at > self._save_after
        if is_due and state.progress is not None and state.progress.steps < self._setup.steps_per_epoch:
            self.save_state(state)

    def save_after_epoch(self, state: TrainingState) -> None:
        """Save the state, unless training has ended or saving would take too large a share of the time."""
        if not state.is_trained and time.perf_counter() >= self._next_save:
            self.save_state(state)

    def save_state(self, state: TrainingState) -> None:
        """Write the state and the history. A resumed run continues from them.

        Raises:
            DivergedError: A loss or a weight is not finite. The files are left unchanged.
            FmcliError: A file cannot be written.
        """
        started = time.perf_counter()
        steps = len(state.this_pass) * self._setup.steps_per_epoch
        if state.progress is not None:
            self._guard.check_losses(len(state.this_pass), state.progress)
            steps += state.progress.steps
        self._guard.check("largest weight", state.learner.max_weight, steps=steps)
        if state.history:
            write_history(self._setup.folder, state.history)
        save_state(self._state_file, state, self._setup.fingerprint)
        self._saved_at = time.perf_counter()
        self._next_save = self._saved_at + (self._saved_at - started) / MAX_SAVING_SHARE
        self._setup.reporter(CheckpointSaved(self._state_file))

    # --- weights ------------------------------------------------------------------------------------------

    def save_snapshot(self, state: TrainingState, logits: Tensor | None) -> None:
        """Write a checkpoint if the recipe keeps snapshots and a cycle ends with this epoch.

        Args:
            state: The state at the end of an epoch.
            logits: float32 (n_samples, n_classes) on the validation images, if there are any.
        """
        epochs = len(state.this_pass) + 1
        number, remainder = divmod(epochs, self._epochs_per_snapshot)
        if remainder == 0 and epochs < state.n_epochs:
            with state.learner.evaluated():
                self._write_weights(self._setup.folder / snapshot_name(number), state, logits, epochs, number)

    def save_trained(self, state: TrainingState) -> Path:
        """Write the checkpoint of the trained member, remove its state, and return the checkpoint's path."""
        self.save_state(state)  # predicting many validation images takes time, and a stop must not lose the last epoch
        path = self._write_result(self._setup.folder, state)
        remove_last_good(self._setup.folder)
        self._state_file.unlink(missing_ok=True)
        return path

    @contextmanager
    def keeping_last_good(self) -> Iterator[None]:
        """If training diverges inside the block, write a checkpoint of the weights that were saved last."""
        try:
            yield
        except DivergedError as error:
            if self._state_file.is_file():
                error.hint = "; ".join(filter(None, (error.hint, self._save_last_good())))
            raise

    def _save_last_good(self) -> str:
        """Write a checkpoint of the last saved weights, and return a hint about it."""
        try:
            path = self._write_result(self._setup.folder / LAST_GOOD, self._restore())
        except DivergedError:
            return "the last saved weights predict NaN, too, so they are not kept"
        except (FmcliError, OSError, MemoryError, RuntimeError) as error:  # report the divergence instead
            return f"the last saved weights could not be kept: {printable(error)}"
        return f"the last saved weights are in {printable(path.parent)}"

    def _write_result(self, folder: Path, state: TrainingState) -> Path:
        epochs = state.use_trained_weights()
        return self._write_weights(folder, state, self._validator.predict(state.learner.model), epochs)

    def _write_weights(
        self, folder: Path, state: TrainingState, logits: Tensor | None, epochs: int, snapshot: int | None = None
    ) -> Path:
        """Write the network's current weights and their validation predictions."""
        steps = epochs * self._setup.steps_per_epoch
        self._guard.check("largest weight", state.learner.max_weight, steps=steps)
        if logits is not None:
            self._guard.check("largest validation logit", float(logits.abs().max()), steps=steps)
        model = state.learner.model
        path = write_checkpoint(folder, model, logits, self._setup, epochs=epochs, snapshot=snapshot)
        self._setup.reporter(CheckpointSaved(path))
        return path


def _epochs_per_snapshot(spec: MemberSpec) -> int:
    """Return the number of epochs between snapshots. The last snapshot is the member itself."""
    if spec.trainer.keep == "snapshots" and isinstance(spec.schedule, CyclicSchedule):
        return spec.trainer.epochs // spec.schedule.cycles
    return spec.trainer.epochs
