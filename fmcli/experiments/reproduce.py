"""Training published systems, seed by seed, and scoring what comes out as they were scored."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from fmcli.checkpoints.checkpoint import Checkpoint
from fmcli.checkpoints.history import best_epoch, read_history
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
from fmcli.choices import SplitName
from fmcli.data.recipe_checks import load_checked_splits
from fmcli.ensemble import combine_predictions, evaluate_ensemble
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file, save_predictions
from fmcli.errors import CheckpointError, DivergedError, RecipeError, RunInUseError, UsageError, did_you_mean, printable
from fmcli.events import EpochFinished, Reporter, RunStarted, WaitingForRun, ignore
from fmcli.experiments.results import SeedResult, SystemResult
from fmcli.members import fit_rule, open_pool
from fmcli.members.inference import predict_splits
from fmcli.recipe import MemberSpec, Recipe, ReferenceSpec, load_recipe, shipped_recipes
from fmcli.recipe.differences import recipe_differences
from fmcli.training.run import train_run
from fmcli.training.run_folder import remove_runs

_PAUSE = 2.0  # seconds
_SCORED: tuple[SplitName, ...] = ("validation", "test")


def published_systems() -> list[str]:
    """Return the shipped recipes of published systems; those that claim no figure, the largest, come last."""
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    systems = {name: recipe.reference for name, recipe in recipes.items() if recipe.reference is not None}
    return sorted(systems, key=lambda name: not _has_figure(systems[name]))


def _has_figure(reference: ReferenceSpec) -> bool:
    return reference.test_accuracy is not None or reference.validation_accuracy is not None


def reproduce(
    names: Sequence[str],
    folder: Path,
    *,
    seeds: int,
    device: torch.device,
    overrides: Sequence[str] = (),
    skip_done: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    data_root: Path | None = None,
    reporter: Reporter = ignore,
) -> list[SystemResult]:
    """Train systems, each with several seeds, and set them beside their published figures.

    Args:
        names: Recipes with a `[reference]` table, by name or path.
        folder: Each training becomes the run `folder/NAME/seed-N`.
        seeds: How many trainings of each, with the seeds 0, 1, …
        device: Where to train.
        overrides: `key=value` strings for every recipe; the results say so.
        skip_done: Take finished runs as they are, and go on with begun ones. Several processes may do so at once:
            each trains what no other does, and waits for the others in the end.
        overwrite: Train what is there afresh.
        threads: CPU threads, where they are asked for; by default, a run that goes on keeps those it was begun with.
        data_root: Where to look first for built-in sources.
        reporter: Told of what happens.

    Returns:
        One entry a system, in the order of names.

    Raises:
        UsageError: A recipe has no `[reference]`, two have the same name, or a run is there already.
        RecipeError, DataError, CheckpointError, DeviceError, FmcliError: See `run.train_run`.
    """
    recipes = {name: load_recipe(name, overrides) for name in names}
    references = {name: _reference_of(recipe) for name, recipe in recipes.items()}
    folders = {name: folder / recipe.name for name, recipe in recipes.items()}
    _check_flags(overrides, skip_done=skip_done, overwrite=overwrite)
    _check_folders(folders, seeds, again=skip_done or overwrite)
    for name, recipe in recipes.items():
        _check_classes(recipe, references[name], data_root)
    runs = [
        _Run(name, recipe.name, seed, (*overrides, f"trainer.seed={seed}"), folders[name] / f"seed-{seed}")
        for name, recipe in recipes.items()
        for seed in range(seeds)
    ]
    if overwrite:  # all at once: what is stopped can then go on with --skip-done
        remove_runs({run.folder: load_recipe(run.name, run.overrides) for run in runs})

    told: set[_Run] = set()

    def train(run: _Run) -> None:
        if run not in told:  # a run of another process is tried again and again
            told.add(run)
            reporter(RunStarted(run.title, run.seed, seeds))
        recipe = load_recipe(run.name, run.overrides)
        again = skip_done or overwrite
        train_run(
            recipe, run.folder, device=device, resume=again, threads=threads, data_root=data_root, reporter=reporter
        )

    _train_each(runs, train, share=skip_done, reporter=reporter)
    results = []
    for name, recipe in recipes.items():
        own = [run for run in runs if run.name == name]
        changes = dict.fromkeys(line for run in own for line in _changes(run))
        scores = [_score(run, device, data_root) for run in own]
        results.append(SystemResult(recipe.name, references[name], scores, tuple(changes)))
    return results


@dataclass(frozen=True, slots=True)
class _Run:
    """A training of a system.

    Args:
        name: Of its recipe, as the user wrote it.
        title: Of its recipe, as that calls itself.
        seed: Of the training.
        overrides: `key=value` strings for its recipe.
        folder: Where it goes.
    """

    name: str
    title: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path


def _train_each(runs: Sequence[_Run], train: Callable[[_Run], None], *, share: bool, reporter: Reporter) -> None:
    """Train runs; where they are shared with other processes, none twice, and wait until all are done.

    Raises:
        DivergedError: Some diverged; the others are trained.
    """
    left = list(runs)
    diverged: dict[_Run, DivergedError] = {}
    while left := [run for run in left if not (share and _is_finished(run.folder))]:
        in_use = []
        for run in left:
            try:
                train(run)
            except RunInUseError:
                if not share:
                    raise
                in_use.append(run)
            except DivergedError as error:
                diverged[run] = error
        if in_use == left:
            reporter(WaitingForRun(left[0].folder))
            time.sleep(_PAUSE)
        left = in_use
    if diverged:
        raise DivergedError(
            f"{len(diverged)} of {len(runs)} trainings did not come to an end: "
            + "; ".join(f"{printable(run.title)}, seed {run.seed}: {error.message}" for run, error in diverged.items()),
            hint="the others are trained: --skip-done shows them, without those systems, or with fewer --seeds",
        )


def _changes(run: _Run) -> list[str]:
    """Return where a run differs from what its recipe says."""
    shipped = load_recipe(run.name, [f"trainer.seed={run.seed}"])
    return recipe_differences(shipped, load_recipe(str(run.folder / RECIPE_FILE)))


def _reference_of(recipe: Recipe) -> ReferenceSpec:
    if recipe.reference is None:
        raise UsageError(
            f"recipe {printable(recipe.name)} has no [reference] table, so there is nothing to set beside it",
            hint="fmcli train trains any recipe; [reference] with a source makes it a system to reproduce",
        )
    return recipe.reference


def _check_flags(overrides: Sequence[str], *, skip_done: bool, overwrite: bool) -> None:
    if skip_done and overwrite:
        raise UsageError("--skip-done keeps runs and --overwrite removes them: give one of them")
    for override in overrides:
        if override.partition("=")[0].strip().endswith("trainer.seed"):
            raise UsageError(f"--set {printable(override)}: each training has a seed of its own", hint="--seeds N")


def _check_classes(recipe: Recipe, reference: ReferenceSpec, data_root: Path | None) -> None:
    """Find images that are missing or do not fit, and recall of classes that there are not, before any training."""
    names = load_checked_splits(recipe, data_root).train.class_names
    for name in reference.test_recall:
        if name not in names:
            raise RecipeError(
                f"recipe {printable(recipe.name)}: reference.test_recall.{printable(name)}: no such class; "
                f"{did_you_mean(name, names)}",
                hint="its keys are class names, as fmcli data info shows them",
            )


def _check_folders(folders: dict[str, Path], seeds: int, *, again: bool) -> None:
    """Find two systems in one folder, or runs that are there already, before any training."""
    if len(set(folders.values())) < len(folders):
        raise UsageError(
            f"two of {', '.join(map(printable, folders))} have the same name",
            hint="name each recipe once, or give one another name = … in its file",
        )
    runs = [folder / f"seed-{seed}" for folder in folders.values() for seed in range(seeds)]
    there = [run for run in runs if (run / RECIPE_FILE).is_file()]
    if there and not again:
        raise UsageError(
            f"{printable(there[0])} already holds a run" + (f", and {len(there) - 1} more do" if there[1:] else ""),
            hint="--skip-done goes on with what is there; --overwrite trains afresh; --output trains elsewhere",
        )


def _is_finished(run: Path) -> bool:
    if not (run / RECIPE_FILE).is_file():
        return False
    return all((run / member.name / MODEL_FILE).is_file() for member in load_recipe(str(run / RECIPE_FILE)).members)


def _score(run: _Run, device: torch.device, data_root: Path | None) -> SeedResult:
    pool = open_pool([run.folder], device=str(device))
    members, rule = pool.checkpoints, pool.choose_rule()
    learnt = fit_rule(pool, rule, data_root=data_root, calibrate=False)
    evaluations = {
        split: evaluate_ensemble(
            combine_predictions(
                _predict(members, split, data_root),
                learnt,
                fitted_here=rule if split == "validation" and learnt is not rule else None,
            )
        )
        for split in _SCORED
        if split in _splits_of(members)
    }
    trained = [member for member in members if member.header.snapshot is None]
    histories = [read_history(member.path.parent) for member in trained]
    kept = [_kept_epoch(history, member.header.member) for history, member in zip(histories, trained, strict=True)]
    test = evaluations["test"]
    accuracy: dict[str, float] = {split: one.vote.report.accuracy for split, one in evaluations.items()}
    scores = zip(test.vote.report.class_names, test.vote.report.classes, strict=True)
    return SeedResult(
        seed=run.seed,
        accuracy=accuracy | {"train": fmean(epoch.train_accuracy for epoch in kept)},
        n_images={split: one.vote.report.macro.support for split, one in evaluations.items()},
        members={member.name: member.report.accuracy for member in test.members},
        recall={name: score.recall for name, score in scores},
        epochs=fmean(epoch.epoch for epoch in kept),
        seconds=sum(epoch.seconds for history in histories for epoch in history),
        trained_on=members[0].header.trained_on | members[0].header.versions,
    )


def _splits_of(members: Sequence[Checkpoint]) -> set[str]:
    """Return the splits that the members saw, and `test`, which every source has."""
    return {"test", *members[0].header.data_digests}


def _kept_epoch(history: Sequence[EpochFinished], member: MemberSpec) -> EpochFinished:
    trainer = member.trainer
    return history[best_epoch(history, trainer.monitor)] if trainer.keep == "best" else history[-1]


def _predict(members: Sequence[Checkpoint], split: SplitName, data_root: Path | None) -> list[Predictions]:
    """Return members' predictions on a split, from what lies beside them or anew."""
    predictions = []
    for member in members:
        path = member.path.parent / predictions_file(split)
        stored = _stored_predictions(path)
        if stored is None or not _is_of(stored, member, split):
            [stored] = predict_splits([member], split, data_root=data_root)
            save_predictions(path, stored)
        predictions.append(stored)
    return predictions


def _stored_predictions(path: Path) -> Predictions | None:
    """Return what lies there; None where it is missing or damaged, for it can be made again."""
    try:
        return load_predictions(path) if path.is_file() else None
    except CheckpointError:
        return None


def _is_of(predictions: Predictions, member: Checkpoint, split: SplitName) -> bool:
    header = member.header
    same_images = predictions.data_digest == header.data_digests.get(split)
    return same_images and predictions.recipe_digest == header.recipe_digest
