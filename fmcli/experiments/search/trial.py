"""Run a trial of a search: claim it, draw its values, train it and score it."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.trial import Trial, TrialState

from fmcli.checkpoints.layout import find_checkpoints
from fmcli.ensemble import choose_combiner
from fmcli.ensemble.predictions import load_predictions, stack_logits
from fmcli.errors import (
    CheckpointError,
    DeviceError,
    DivergedError,
    FmcliError,
    RecipeError,
    RunInUseError,
    UsageError,
    printable,
)
from fmcli.events import EpochFinished, Event, Reporter, TrialFinished
from fmcli.experiments.search.plan import Search
from fmcli.members.vote import accuracy_of_rule
from fmcli.recipe import Recipe
from fmcli.recipe.search import ChoiceSpace, SearchSpec, Space
from fmcli.storage.locks import locked, try_lock
from fmcli.training import VALIDATION_FILE, run_folder

REASON = "reason"
"""Name of the attribute with the reason why a trial failed."""


@dataclass(frozen=True, slots=True)
class ClaimedTrial:
    """A trial that only this process runs.

    Args:
        handle: Optuna's trial.
        values: Drawn values by path in the recipe.
        folder: Folder for the runs of the trial.
        lock: The lock of the folder, which this process holds.
    """

    handle: Trial
    values: dict[str, Any]
    folder: Path
    lock: FileLock

    @property
    def number(self) -> int:
        """Number of the trial, from 0."""
        return self.handle.number


def claim_trial(study: optuna.Study, search: Search) -> ClaimedTrial | None:
    """Return an unfinished trial of a killed process or a new trial, or None if the search has all its trials."""
    with locked(search.folder):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and (lock := try_lock(_trial_folder(search, frozen.number))):
                return _draw_values(search, study, Trial(study, frozen._trial_id), lock)
        if len(trials) >= search.spec.trials:
            return None
        lock = try_lock(_trial_folder(search, len(trials)))
        if lock is None:
            raise FmcliError(f"{printable(_trial_folder(search, len(trials)))} is in use by another process")
        return _draw_values(search, study, study.ask(), lock)


def _trial_folder(search: Search, number: int) -> Path:
    return search.folder / f"trial-{number:04d}"


def _draw_values(search: Search, study: optuna.Study, handle: Trial, lock: FileLock) -> ClaimedTrial:
    values = {}
    for index, (key, space) in enumerate(search.spec.space.items()):
        study.sampler = _make_sampler(search.spec, handle.number, index)
        values[key] = _suggest(handle, key, space)
    return ClaimedTrial(handle, values, _trial_folder(search, handle.number), lock)


def _make_sampler(spec: SearchSpec, number: int, key_index: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draw depends only on seed, trial and key, so that all processes draw the same value."""
    seed = int(np.random.SeedSequence([spec.seed, number, key_index]).generate_state(1)[0])
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _suggest(trial: Trial, key: str, space: Space) -> Any:
    """Return the value of a key: the recorded value if the trial is resumed, otherwise a new draw."""
    if isinstance(space, ChoiceSpace):
        labels = choices_by_label(space)
        return labels[trial.suggest_categorical(key, list(labels))]
    if space.is_whole:
        return trial.suggest_int(key, int(space.low), int(space.high), step=int(space.step or 1), log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def choices_by_label(space: ChoiceSpace) -> dict[Any, Any]:
    """Return the choices by their labels in a study. The label of a list or table is JSON."""
    return {one if isinstance(one, bool | int | float | str) else json.dumps(one): one for one in space.choice}


def run_trial(
    study: optuna.Study,
    trial: ClaimedTrial,
    search: Search,
    train: Callable[..., object],
    reporter: Reporter,
) -> TrialFinished:
    """Train and score a trial, and record the result in the study.

    Args:
        study: Optuna's study.
        trial: The trial.
        search: The search.
        train: `train_run` with the options of this process.
        reporter: Receives the events.
    """
    scores = []
    try:
        for training in range(search.spec.trainings):
            recipe = search.resolve_trial(trial.values, training)
            folder = trial.folder / f"training-{training}"
            prunes = search.spec.pruner != "none" and training == 0
            study.pruner = _make_pruner(search.spec)
            _train(train, recipe, folder, _prune_while_training(trial.handle, reporter) if prunes else reporter)
            scores.append(_score(folder, recipe))
    except (RecipeError, DivergedError, DeviceError) as error:  # these values cannot be scored
        reason = printable(" ".join(error.message.split()))
        trial.handle.set_user_attr(REASON, reason)
        study.tell(trial.handle, state=TrialState.FAIL)
        return TrialFinished(trial.number, None, reason)
    except optuna.TrialPruned:
        study.tell(trial.handle, state=TrialState.PRUNED)
        return TrialFinished(trial.number, None, "stopped early")
    study.tell(trial.handle, fmean(scores))
    return TrialFinished(trial.number, fmean(scores))


def _train(train: Callable[..., object], recipe: Recipe, folder: Path, reporter: Reporter) -> None:
    """Start or resume a run. If the files of an earlier process are unusable, start it again."""
    try:
        train(recipe, folder, resume=True, reporter=reporter)
    except RunInUseError:
        raise
    except (CheckpointError, UsageError):
        with run_folder.locked(folder):
            run_folder.remove_run(folder, recipe)
        train(recipe, folder, reporter=reporter)


def _score(folder: Path, recipe: Recipe) -> float:
    """Return the validation accuracy of the vote of a run."""
    predictions = [load_predictions(path.parent / VALIDATION_FILE) for path in find_checkpoints(folder)]
    names = [one.member.partition("/")[0] for one in predictions]  # a snapshot has the weight of its member
    groups = [one.group for one in predictions]
    combiner = choose_combiner([recipe.ensemble], names, groups)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    return accuracy_of_rule(combiner, logits, y_true)


def _make_pruner(spec: SearchSpec) -> optuna.pruners.BasePruner:
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.SuccessiveHalvingPruner() if spec.pruner == "halving" else optuna.pruners.NopPruner()


def _prune_while_training(trial: Trial, reporter: Reporter) -> Callable[[Event], None]:
    """Return a reporter that also records each epoch in the study, and stops the trial if the pruner rejects it."""

    def report(event: Event) -> None:
        if not isinstance(event, EpochFinished) or event.validation_accuracy is None:
            reporter(event)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a resumed trial may report an epoch twice
            trial.report(event.validation_accuracy, event.epoch)
        reporter(event)  # may stop the run, which then resumes after this epoch
        if trial.should_prune():
            raise optuna.TrialPruned

    return report
