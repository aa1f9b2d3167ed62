"""Search hyperparameters of any recipe with Optuna. A search can be resumed, and several processes can share it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from fmcli.checkpoints.checkpoint import versions
from fmcli.data import Splits
from fmcli.errors import UsageError
from fmcli.events import Reporter, TrialStarted, ignore
from fmcli.experiments.results import SearchResult, State, TrialResult
from fmcli.experiments.search.plan import Search, open_search
from fmcli.experiments.search.study import JOURNAL, load_study, open_study
from fmcli.experiments.search.trial import REASON, choices_by_label, claim_trial, run_trial
from fmcli.hardware.device import use_bf16
from fmcli.recipe import Recipe, dump_table, trial_table, value_at
from fmcli.recipe.search import ChoiceSpace, SearchSpec
from fmcli.storage.atomic import write_atomic
from fmcli.training.fingerprint import computing_versions, digests_of_training
from fmcli.training.recipe_checks import load_checked_splits
from fmcli.training.run import train_run

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
    """Run trials until the search has the requested number of trials. Resume trials of killed processes.

    Args:
        search: The search.
        device: Device to train on.
        resume: Continue or join an existing search.
        threads: CPU threads. Default: a resumed run keeps the number that it started with.
        data_root: First folder to search for built-in sources.
        reporter: Receives the events.

    Returns:
        All trials so far. Trials that other processes are training have the state `running`.

    Raises:
        UsageError: A search exists and `resume` is not set, or its recipe, images or versions differ.
        RecipeError, DataError, DeviceError, FmcliError: See `train_run`.
    """
    splits = load_checked_splits(search.recipe, data_root)  # report errors before creating any file
    study = open_study(search, resume=resume, fingerprint=_fingerprint(search.recipe, splits, device))
    train = partial(train_run, device=device, join=False, threads=threads, data_root=data_root)
    while (trial := claim_trial(study, search)) is not None:
        try:
            reporter(TrialStarted(trial.number, search.spec.trials, trial.values))
            reporter(run_trial(study, trial, search, train, reporter))
        finally:
            trial.lock.release()
    return _summarize(study, search.recipe, search.spec, search.folder)


def _fingerprint(recipe: Recipe, splits: Splits, device: torch.device) -> dict[str, str]:
    digests = {f"{split} images": digest[:12] for split, digest in digests_of_training(splits).items()}
    in_bf16 = any(use_bf16(member.trainer.precision, device) for member in recipe.members)
    return digests | computing_versions(versions(), kernels=in_bf16 and device.type == "cpu")


def read_search(folder: Path) -> SearchResult:
    """Return the trials of an existing search without continuing it.

    Raises:
        UsageError: There is no search in the folder.
    """
    study, recipe, spec = load_study(folder)
    return _summarize(study, recipe, spec, folder)


def _summarize(study: optuna.Study, recipe: Recipe, spec: SearchSpec, folder: Path) -> SearchResult:
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
        values[key] = choices_by_label(space).get(value, value) if isinstance(space, ChoiceSpace) else value
    # Optuna gives a pruned trial the accuracy of its last epoch.
    score = trial.value if trial.state == TrialState.COMPLETE else None
    return TrialResult(trial.number, _STATES[trial.state], values, score, trial.user_attrs.get(REASON, ""))


def _importance(study: optuna.Study, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    scores = {trial.value for trial in trials if trial.state == TrialState.COMPLETE}
    if len(scores) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):  # one of the values does not vary yet
        return {}


def write_winner(search: Search, result: SearchResult, path: Path) -> None:
    """Write the recipe with the values of the best trial.

    Raises:
        UsageError: No trial is complete.
        FmcliError: The file cannot be written.
    """
    best = result.best(1)
    if not best:
        raise UsageError("no trial is complete, so there is no best recipe to write", remedies=["more-trials"])
    [trial] = best
    first_line = (
        f"{search.recipe.name} with the values of trial {trial.number}, the best of {result.count('complete')}: "
        f"{100 * (trial.score or 0.0):.2f} % on the validation images."
    )
    write_atomic(path, dump_table(trial_table(search.text.table, trial.values), first_line).encode())
