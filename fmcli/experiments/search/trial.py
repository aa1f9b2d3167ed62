"""A trial: claimed by one process, drawn, trained, scored."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import torch
from filelock import FileLock
from optuna.trial import Trial, TrialState

from fmcli.checkpoints.layout import find_checkpoints
from fmcli.ensemble import choose_combiner, cross_fit
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
from fmcli.recipe import Recipe
from fmcli.recipe.search import ChoiceSpace, SearchSpec, Space
from fmcli.storage.locks import LOCK_FILE, try_lock
from fmcli.training import VALIDATION_FILE
from fmcli.training.run import train_run
from fmcli.training.run_folder import remove_run

REASON = "reason"  # a failed trial's attribute


@dataclass(frozen=True, slots=True)
class Claimed:
    """A trial that is this process's to do, as long as it holds the lock."""

    handle: Trial
    number: int
    values: dict[str, Any]
    folder: Path
    lock: FileLock


def claim(study: optuna.Study, search: Search) -> Claimed | None:
    """Return a trial that a process left when it died, or else a new one; None if there are enough."""
    with _guarded(search.folder / LOCK_FILE):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and (lock := try_lock(_folder_of(search, frozen.number))):
                return _claimed(search, study, Trial(study, frozen._trial_id), lock)
        if len(trials) >= search.spec.trials:
            return None
        lock = try_lock(_folder_of(search, len(trials)))
        if lock is None:
            raise FmcliError(f"{printable(_folder_of(search, len(trials)))} is in use by another process")
        return _claimed(search, study, study.ask(), lock)


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Let one process at a time choose its trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def _folder_of(search: Search, number: int) -> Path:
    return search.folder / f"trial-{number:04d}"


def _claimed(search: Search, study: optuna.Study, handle: Trial, lock: FileLock) -> Claimed:
    values = {}
    for place, (key, space) in enumerate(search.spec.space.items()):
        study.sampler = _sampler_of(search.spec, handle.number, place)
        values[key] = _suggest(handle, key, space)
    return Claimed(handle, handle.number, values, _folder_of(search, handle.number), lock)


def _sampler_of(spec: SearchSpec, number: int, place: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draw depends on seed, trial and key alone, not on which process asks, or when."""
    seed = int(np.random.SeedSequence([spec.seed, number, place]).generate_state(1)[0])
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _suggest(trial: Trial, key: str, space: Space) -> Any:
    """Return what a trial draws for a key, or drew before."""
    if isinstance(space, ChoiceSpace):
        labels = {label_of(choice): choice for choice in space.choice}
        return labels[trial.suggest_categorical(key, list(labels))]
    if space.is_whole:
        return trial.suggest_int(key, int(space.low), int(space.high), step=int(space.step or 1), log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def label_of(choice: Any) -> Any:
    """Return what stands for a choice in a study, which takes plain values: lists and tables go by their JSON."""
    return choice if isinstance(choice, bool | int | float | str) else json.dumps(choice)


def run_trial(
    study: optuna.Study,
    trial: Claimed,
    search: Search,
    *,
    device: torch.device,
    threads: int | None,
    data_root: Path | None,
    reporter: Reporter,
) -> TrialFinished:
    """Train and score a trial, and tell the study."""
    scores = []
    try:
        for training in range(search.spec.trainings):
            recipe = search.resolve_trial(trial.values, training)
            folder = trial.folder / f"training-{training}"
            watch = _pruning(trial.handle, reporter) if search.spec.pruner != "none" and training == 0 else reporter
            study.pruner = _pruner_of(search.spec)
            _train(recipe, folder, device=device, threads=threads, data_root=data_root, reporter=watch)
            scores.append(_score(folder, recipe))
    except (RecipeError, DivergedError, DeviceError) as error:  # together, these values give nothing to score
        reason = printable(" ".join(error.message.split()))
        trial.handle.set_user_attr(REASON, reason)
        study.tell(trial.handle, state=TrialState.FAIL)
        return TrialFinished(trial.number, None, reason)
    except optuna.TrialPruned:
        study.tell(trial.handle, state=TrialState.PRUNED)
        return TrialFinished(trial.number, None, "stopped early")
    study.tell(trial.handle, fmean(scores))
    return TrialFinished(trial.number, fmean(scores))


def _train(
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    threads: int | None,
    data_root: Path | None,
    reporter: Reporter,
) -> None:
    """Go on with a training, or begin it afresh where what an earlier process left is of no use."""
    train = partial(train_run, recipe, folder, device=device, threads=threads, data_root=data_root, reporter=reporter)
    try:
        train(resume=True)
    except RunInUseError:
        raise
    except (CheckpointError, UsageError):
        remove_run(folder, recipe)
        train()


def _score(folder: Path, recipe: Recipe) -> float:
    """Return the validation accuracy of a run: of its member, or of its members' vote."""
    predictions = [load_predictions(path.parent / VALIDATION_FILE) for path in find_checkpoints([folder])]
    names = [one.member.partition("/")[0] for one in predictions]  # a snapshot has its member's weight
    groups = [one.group for one in predictions]
    rule = choose_combiner([recipe.ensemble], names, groups)
    logits, y_true = stack_logits(predictions), predictions[0].labels
    vote = cross_fit(rule, logits, y_true)(logits) if rule.needs_fit else rule(logits)
    return float((vote.labels == y_true).mean())


def _pruner_of(spec: SearchSpec) -> optuna.pruners.BasePruner:
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.SuccessiveHalvingPruner() if spec.pruner == "halving" else optuna.pruners.NopPruner()


def _pruning(trial: Trial, reporter: Reporter) -> Callable[[Event], None]:
    """Return a reporter that also tells the study of each epoch, and stops a trial that is not worth going on."""

    def watch(event: Event) -> None:
        if not isinstance(event, EpochFinished) or event.validation_accuracy is None:
            reporter(event)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a trial whose process was killed repeats an epoch
            trial.report(event.validation_accuracy, event.epoch)
        reporter(event)  # which may stop the training; it goes on behind this epoch
        if trial.should_prune():
            raise optuna.TrialPruned

    return watch
