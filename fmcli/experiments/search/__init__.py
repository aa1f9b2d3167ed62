"""Hyperparameter search over any recipe, by Optuna: resumable, and shared by any number of processes."""

from collections.abc import Sequence
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from fmcli.checkpoints.checkpoint import versions
from fmcli.data import Splits
from fmcli.data.recipe_checks import load_checked_splits
from fmcli.errors import UsageError
from fmcli.events import Reporter, TrialStarted, ignore
from fmcli.experiments.results import SearchResult, State, TrialResult
from fmcli.experiments.search.plan import Search, open_search
from fmcli.experiments.search.study import JOURNAL, load_study, open_study
from fmcli.experiments.search.trial import REASON, claim, label_of, run_trial
from fmcli.hardware.device import use_bf16
from fmcli.recipe import Recipe, dump_table, trial_table, value_at
from fmcli.recipe.search import ChoiceSpace, SearchSpec
from fmcli.storage.atomic import write_atomic
from fmcli.training.fingerprint import computing_versions, digests_of_training

__all__ = ["JOURNAL", "Search", "open_search", "read_search", "run_search", "write_winner"]

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


def run_search(
    search: Search,
    *,
    device: torch.device,
    resume: bool = False,
    threads: int | None = None,
    data_root: Path | None = None,
    reporter: Reporter = ignore,
) -> SearchResult:
    """Try sets of values until there are as many as asked for; what a killed process began goes on.

    Args:
        search: What to try.
        device: Where to train.
        resume: Go on with, or join, the search that is there.
        threads: CPU threads, where they are asked for; by default, a training that goes on keeps its own.
        data_root: Where to look first for built-in sources.
        reporter: Told of what happens.

    Returns:
        All trials so far; those that another process is still at have the state `running`.

    Raises:
        UsageError: There is a search and `resume` is not set, or it is of another recipe, other images or
            another version.
        RecipeError, DataError, DeviceError, FmcliError: See `run.train_run`.
    """
    splits = load_checked_splits(search.recipe, data_root)  # what is wrong is found before anything is made
    study = open_study(search, resume=resume, fingerprint=_fingerprints(search.recipe, splits, device))
    while (trial := claim(study, search)) is not None:
        try:
            reporter(TrialStarted(trial.number, search.spec.trials, trial.values))
            reporter(
                run_trial(study, trial, search, device=device, threads=threads, data_root=data_root, reporter=reporter)
            )
        finally:
            trial.lock.release()
    return _result_of(study, search.recipe, search.spec, search.folder)


def _fingerprints(recipe: Recipe, splits: Splits, device: torch.device) -> dict[str, str]:
    digests = {f"{split} images": digest[:12] for split, digest in digests_of_training(splits).items()}
    in_bf16 = any(use_bf16(member.trainer.precision, device) for member in recipe.members)
    return digests | computing_versions(versions(), kernels=in_bf16 and device.type == "cpu")


def read_search(folder: Path) -> SearchResult:
    """Return what there is of a search, without going on.

    Args:
        folder: The search's.

    Raises:
        UsageError: It holds none.
    """
    study, recipe, spec = load_study(folder)
    return _result_of(study, recipe, spec, folder)


def _result_of(study: optuna.Study, recipe: Recipe, spec: SearchSpec, folder: Path) -> SearchResult:
    trials = study.get_trials(deepcopy=False)
    return SearchResult(
        recipe=recipe.name,
        folder=str(folder),
        asked=spec.trials,
        untuned={key: value_at(recipe, key) for key in spec.space},
        trials=[_trial_result(trial, spec) for trial in trials],
        importance=_importance(study, trials),
    )


def _trial_result(trial: FrozenTrial, spec: SearchSpec) -> TrialResult:
    values = {}
    for key, value in trial.params.items():
        space = spec.space[key]
        labels = {label_of(choice): choice for choice in space.choice} if isinstance(space, ChoiceSpace) else {}
        values[key] = labels.get(value, value)
    score = trial.value if trial.state == TrialState.COMPLETE else None  # Optuna gives pruned ones their last epoch's
    return TrialResult(trial.number, _STATES[trial.state], values, score, trial.user_attrs.get(REASON, ""))


def _importance(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    scores = {trial.value for trial in trials if trial.state == TrialState.COMPLETE}
    if len(scores) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):  # too few trials for some value to vary
        return {}


def write_winner(search: Search, result: SearchResult, path: Path) -> None:
    """Write the recipe with the best trial's values in their places.

    Raises:
        UsageError: No trial is complete.
        FmcliError: The file cannot be written.
    """
    best = result.best(1)
    if not best:
        raise UsageError("no trial is complete, so there is no winner to write", hint="--resume --trials N tries more")
    [trial] = best
    first_line = (
        f"{search.recipe.name} with the values of trial {trial.number}, the best of {result.count('complete')}: "
        f"{100 * (trial.score or 0.0):.2f} % on the validation images."
    )
    write_atomic(path, dump_table(trial_table(search.text.table, trial.values), first_line).encode())
