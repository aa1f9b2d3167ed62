"""Hyperparameter search over any recipe, by Optuna: resumable, and shared by any number of processes."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL

from fmcli.checkpoint import find_checkpoints
from fmcli.choices import Storage
from fmcli.ensemble import evaluate_ensemble
from fmcli.errors import DivergedError, FmcliError, RecipeError, UsageError, printable
from fmcli.events import EpochFinished, Event, Reporter, TrialFinished, TrialStarted, ignore
from fmcli.files import write_atomic
from fmcli.locks import LOCK_FILE, try_lock
from fmcli.predictions import load_predictions
from fmcli.recipe import Recipe, RecipeText, dump_table, read_recipe, resolve_recipe, trial_table, value_at
from fmcli.recipe.differences import recipe_differences, show_differences
from fmcli.recipe.specs import ChoiceSpace, SearchSpec, Space
from fmcli.run import train_run
from fmcli.trainer import VALIDATION_FILE
from fmcli.trials import SearchResult, State, TrialResult

SEARCHES = Path("checkpoints/search")
STORAGE_FILES: dict[Storage, str] = {"journal": "trials.journal", "sqlite": "trials.db"}
_STUDY = "fmcli-search"
_RECIPE = "fmcli recipe"  # a study's attribute
_SEARCH = "fmcli search"
_REASON = "reason"  # a failed trial's attribute
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


@dataclass(frozen=True, slots=True)
class Search:
    """What a search is about.

    Args:
        text: The recipe, as read.
        recipe: The same, resolved.
        spec: Its `[search]` table.
        folder: Where each trial's trainings go.
    """

    text: RecipeText
    recipe: Recipe
    spec: SearchSpec
    folder: Path

    def resolve_trial(self, values: Mapping[str, Any], training: int) -> Recipe:
        """Return the recipe of one training of a trial.

        Raises:
            RecipeError: The values make an impossible network together.
        """
        recipe = resolve_recipe(trial_table(self.text.table, values), name=self.text.name)
        members = []
        for member in recipe.members:
            trainer = member.trainer
            during = {
                "epochs": self.spec.epochs or trainer.epochs,
                "seed": trainer.seed + training,
                "keep": "best",
                "patience": None,
            }
            members.append(member.model_copy(update={"trainer": trainer.model_copy(update=during)}))
        return recipe.model_copy(update={"members": tuple(members)})


def open_search(
    name: str, folder: Path | None = None, *, overrides: Sequence[str] = (), trials: int | None = None
) -> Search:
    """Read a recipe that is to be searched.

    Args:
        name: A recipe's name or path.
        folder: Where the search goes; by default `checkpoints/search/RECIPE`.
        overrides: `key=value` strings.
        trials: How many sets of values to try, instead of the recipe's number.

    Raises:
        RecipeError: It has a problem, or no `[search]` table, or no validation images to score on.
    """
    text = read_recipe(name, overrides)
    recipe = resolve_recipe(text.table, name=text.name, description=text.description)
    if recipe.search is None:
        raise RecipeError(
            f"recipe {printable(name)} has no [search] table",
            hint="fmcli recipe show ams-search has one to start from",
        )
    if not recipe.data.validates:
        raise RecipeError(
            f"recipe {printable(name)} sets no validation images aside, and a search is scored on them",
            hint="add validation = { first = 5000 } to [data]",
        )
    if recipe.search.pruner != "none" and len(recipe.members) > 1:
        raise RecipeError(
            f"search.pruner: got {recipe.search.pruner!r}, which needs a recipe of one member",
            hint='pruner = "none", or a recipe of one member',
        )
    spec = recipe.search if trials is None else recipe.search.model_copy(update={"trials": trials})
    return Search(text, recipe, spec, folder or SEARCHES / recipe.name)


def run_search(
    search: Search,
    *,
    device: torch.device,
    storage: Storage | None = None,
    resume: bool = False,
    data_root: Path | None = None,
    reporter: Reporter = ignore,
) -> SearchResult:
    """Try sets of values until there are as many as asked for; what a killed process began goes on.

    Args:
        search: What to try.
        device: Where to train.
        storage: What kind of file keeps the trials, in the search's folder; by default the kind that is there, or
            a journal. Several processes may share either.
        resume: Go on with, or join, the search that is there.
        data_root: Where to look first for built-in sources.
        reporter: Told of what happens.

    Returns:
        All trials so far; those that another process is still at have the state `running`.

    Raises:
        UsageError: There is a search and `resume` is not set, or it is of another recipe.
        RecipeError, DataError, DeviceError, FmcliError: See `run.train_run`.
    """
    study = _open_study(search, storage, resume=resume)
    while (trial := _claim(study, search)) is not None:
        try:
            reporter(TrialStarted(trial.number, search.spec.trials, trial.values))
            score = _run_trial(study, trial, search, device=device, data_root=data_root, reporter=reporter)
            reporter(TrialFinished(trial.number, score))
        finally:
            trial.lock.release()
    return _result_of(study, search.recipe, search.spec, search.folder)


def read_search(folder: Path) -> SearchResult:
    """Return what there is of a search, without going on.

    Args:
        folder: The search's.

    Raises:
        UsageError: It holds none.
    """
    there = [folder / name for name in STORAGE_FILES.values() if (folder / name).is_file()]
    if not there:
        raise UsageError(f"there is no search in {printable(folder)}", hint="fmcli search --recipe … makes one")
    with _explained(there[0]):
        study = optuna.load_study(study_name=_STUDY, storage=_storage_of(there[0]))
        recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
        spec = SearchSpec.model_validate_json(study.user_attrs[_SEARCH])
    return _result_of(study, recipe, spec, folder)


# --- the study --------------------------------------------------------------------------------------------


def _open_study(search: Search, storage: Storage | None, *, resume: bool) -> optuna.Study:
    kinds: dict[Storage, Path] = {kind: search.folder / name for kind, name in STORAGE_FILES.items()}
    there = [kind for kind, path in kinds.items() if path.exists()]
    place = kinds[storage or (there[0] if there else "journal")]
    if there and not resume:
        raise UsageError(
            f"{printable(search.folder)} already holds a search",
            hint="--resume goes on with it or joins it; --output searches elsewhere",
        )
    if there and not place.exists():
        raise UsageError(f"{printable(search.folder)} keeps its trials as {there[0]}", hint="leave out --storage")
    with _explained(place):
        search.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=_storage_of(place), study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        _check_study(study, search, place)
    return study


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy and pydantic raise on a file that is not a search into one error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except FmcliError:
        raise
    except OSError as error:
        raise FmcliError(f"cannot use {printable(place)}: {error.strerror or error}") from error
    except Exception as error:
        raise UsageError(
            f"{printable(place)} holds no search of fmcli: {printable(error).splitlines()[0]}",
            hint="give another folder with --output",
        ) from error


def _storage_of(place: Path) -> BaseStorage:
    if place.name == STORAGE_FILES["sqlite"]:
        url = URL.create("sqlite", database=str(place))
        return RDBStorage(url.render_as_string(), engine_kwargs={"connect_args": {"timeout": 60}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(place)))


def _check_study(study: optuna.Study, search: Search, place: Path) -> None:
    """Note in a new study what it searches; refuse one that searches something else."""
    recipe = search.recipe.model_copy(update={"search": None})
    if _RECIPE not in study.user_attrs:
        if study.trials:
            raise UsageError(
                f"{printable(place)} holds trials that are not fmcli's", hint="give another folder with --output"
            )
        study.set_user_attr(_SEARCH, search.spec.model_dump_json())
        study.set_user_attr(_RECIPE, recipe.model_dump_json())
        return
    old_recipe = Recipe.model_validate_json(study.user_attrs[_RECIPE])
    old_spec = SearchSpec.model_validate_json(study.user_attrs[_SEARCH])
    old, new = (spec.model_dump(mode="json", exclude={"trials"}) for spec in (old_spec, search.spec))
    differences = recipe_differences(old_recipe, recipe) + show_differences(old, new, "search")
    if differences:
        raise UsageError(
            f"{printable(place)} is a search over another recipe:\n  " + "\n  ".join(differences[:10]),
            hint="drop the change to resume; --output searches elsewhere",
        )
    if old_spec.trials != search.spec.trials:
        study.set_user_attr(_SEARCH, search.spec.model_dump_json())


# --- a trial ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A trial that is this process's to do, as long as it holds the lock."""

    handle: Trial
    number: int
    values: dict[str, Any]
    folder: Path
    lock: FileLock


def _claim(study: optuna.Study, search: Search) -> _Claimed | None:
    """Return a trial that a process left when it died, or else a new one; None if there are enough."""
    with _guarded(search.folder / LOCK_FILE):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and (lock := try_lock(_folder_of(search, frozen.number))):
                study.sampler = _sampler_of(search.spec, frozen.number)
                return _claimed(search, Trial(study, frozen._trial_id), lock)
        if len(trials) >= search.spec.trials:
            return None
        lock = try_lock(_folder_of(search, len(trials)))
        if lock is None:
            raise FmcliError(f"{printable(_folder_of(search, len(trials)))} is in use by another process")
        study.sampler = _sampler_of(search.spec, len(trials))
        return _claimed(search, study.ask(), lock)


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Let one process at a time choose its trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def _folder_of(search: Search, number: int) -> Path:
    return search.folder / f"trial-{number:04d}"


def _claimed(search: Search, handle: Trial, lock: FileLock) -> _Claimed:
    values = {key: _suggest(handle, key, space) for key, space in search.spec.space.items()}
    return _Claimed(handle, handle.number, values, _folder_of(search, handle.number), lock)


def _sampler_of(spec: SearchSpec, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draws depend on seed and trial alone, not on which process asks, or when."""
    seed = (spec.seed * 1_000_003 + number) % 2**32
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _suggest(trial: Trial, key: str, space: Space) -> Any:
    """Return what a trial draws for a key, or drew before."""
    if isinstance(space, ChoiceSpace):
        # Optuna's choices are plain values; lists and tables go by their JSON.
        labels = {_label(choice): choice for choice in space.choice}
        return labels[trial.suggest_categorical(key, list(labels))]
    if space.is_whole:
        return trial.suggest_int(key, int(space.low), int(space.high), step=int(space.step or 1), log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def _label(choice: Any) -> Any:
    return choice if isinstance(choice, bool | int | float | str) else json.dumps(choice)


def _run_trial(
    study: optuna.Study,
    trial: _Claimed,
    search: Search,
    *,
    device: torch.device,
    data_root: Path | None,
    reporter: Reporter,
) -> float | None:
    """Train and score a trial, and tell the study; None where it was pruned or its network is impossible."""
    scores = []
    try:
        for training in range(search.spec.trainings):
            recipe = search.resolve_trial(trial.values, training)
            folder = trial.folder / f"training-{training}"
            watch = _pruning(trial.handle, reporter) if search.spec.pruner != "none" and training == 0 else reporter
            study.pruner = _pruner_of(search.spec)
            train_run(recipe, folder, device=device, resume=True, data_root=data_root, reporter=watch)
            scores.append(_score(folder, recipe))
    except (RecipeError, DivergedError) as error:  # together, these values give nothing that can be scored
        trial.handle.set_user_attr(_REASON, printable(error.message))
        study.tell(trial.handle, state=TrialState.FAIL)
        return None
    except optuna.TrialPruned:
        study.tell(trial.handle, state=TrialState.PRUNED)
        return None
    study.tell(trial.handle, fmean(scores))
    return fmean(scores)


def _score(folder: Path, recipe: Recipe) -> float:
    """Return the validation accuracy of a run: of its member, or of its members' vote."""
    paths = [path.parent / VALIDATION_FILE for path in find_checkpoints([folder])]
    return evaluate_ensemble([load_predictions(path) for path in paths], recipe.ensemble).vote.report.accuracy


def _pruner_of(spec: SearchSpec) -> optuna.pruners.BasePruner:
    if spec.pruner == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.SuccessiveHalvingPruner() if spec.pruner == "halving" else optuna.pruners.NopPruner()


def _pruning(trial: Trial, reporter: Reporter) -> Callable[[Event], None]:
    """Return a reporter that also tells the study of each epoch, and stops a trial that is not worth going on."""

    def watch(event: Event) -> None:
        reporter(event)
        if isinstance(event, EpochFinished) and event.validation_accuracy is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a resumed trial repeats its last epoch
                trial.report(event.validation_accuracy, event.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    return watch


# --- the result -------------------------------------------------------------------------------------------


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
        labels = {_label(choice): choice for choice in space.choice} if isinstance(space, ChoiceSpace) else {}
        values[key] = labels.get(value, value)
    score = trial.value if trial.state == TrialState.COMPLETE else None  # Optuna gives pruned ones their last epoch's
    return TrialResult(trial.number, _STATES[trial.state], values, score)


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
        raise UsageError("no trial is complete, so there is no winner to write", hint="go on with --resume")
    [trial] = best
    first_line = (
        f"{search.recipe.name} with the values of trial {trial.number}, the best of {result.count('complete')}: "
        f"{100 * (trial.score or 0.0):.2f} % on the validation images."
    )
    write_atomic(path, dump_table(trial_table(search.text.table, trial.values), first_line).encode())
