"""Train published systems with several seeds, and evaluate them in the same way as their reports."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from fmcli.checkpoints.checkpoint import read_header
from fmcli.checkpoints.history import best_epoch, read_history
from fmcli.checkpoints.layout import RECIPE_FILE, find_checkpoints, members_of_run, unfinished_members
from fmcli.choices import SplitName
from fmcli.ensemble import evaluate_ensemble
from fmcli.errors import DivergedError, RecipeError, RunInUseError, UsageError, did_you_mean, printable
from fmcli.events import EpochFinished, Reporter, RunStarted, WaitingForRun, ignore
from fmcli.experiments.results import SeedResult, SystemResult
from fmcli.members.pool import open_pool
from fmcli.members.vote import vote_on_split
from fmcli.recipe import MemberSpec, Recipe, ReferenceSpec, load_recipe, shipped_recipes
from fmcli.recipe.differences import recipe_differences
from fmcli.training.recipe_checks import load_checked_splits
from fmcli.training.run import train_run
from fmcli.training.run_folder import remove_runs

_POLL_INTERVAL_S = 2.0
_SCORED_SPLITS: tuple[SplitName, ...] = ("validation", "test")


def published_systems() -> list[str]:
    """Return the names of all shipped recipes of published systems.

    Systems without a published accuracy come last, because they are the largest.
    """
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    systems = {name: recipe.reference for name, recipe in recipes.items() if recipe.reference is not None}
    return sorted(
        systems, key=lambda name: systems[name].test_accuracy is None and systems[name].validation_accuracy is None
    )


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
    """Train systems with several seeds and compare them with the published scores.

    Args:
        names: Names or paths of recipes with a `[reference]` table.
        folder: Output folder. The runs are `folder/NAME/seed-N`.
        seeds: Number of runs of each system. Their seeds are 0, 1, …
        device: Device to train on.
        overrides: `key=value` strings for every recipe. The results list the changes.
        skip_done: Keep finished runs and resume unfinished ones. Several processes can then share the work: each of
            them skips the runs that another process is training, and waits for them at the end.
        overwrite: Remove existing runs first.
        threads: CPU threads. Default: a resumed run keeps the number that it started with.
        data_root: First folder to search for built-in sources.
        reporter: Receives the events.

    Returns:
        One result per system, in the order of `names`.

    Raises:
        UsageError: A recipe has no `[reference]` table, two recipes have the same name, or a run already exists.
        RecipeError, DataError, CheckpointError, DeviceError, FmcliError: See `train_run`.
    """
    _check_options(overrides, skip_done=skip_done, overwrite=overwrite)
    systems = [[_plan_run(name, seed, overrides, folder) for seed in range(seeds)] for name in dict.fromkeys(names)]
    references = [_require_reference(first.recipe) for first, *_ in systems]
    _check_folders(systems, may_exist=skip_done or overwrite)
    for (first, *_), reference in zip(systems, references, strict=True):
        _check_classes(first.recipe, reference, data_root)
    runs = [run for system in systems for run in system]
    if overwrite:  # remove all of them first, so that an interrupted call can be continued with skip_done
        remove_runs({run.folder: run.recipe for run in runs})
    train = partial(
        train_run,
        device=device,
        resume=skip_done or overwrite,
        join=False,
        threads=threads,
        data_root=data_root,
        reporter=reporter,
    )
    _train_all(runs, train, share=skip_done, seeds=seeds, reporter=reporter)
    return [
        _summarize(system, reference, device, data_root) for system, reference in zip(systems, references, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A run of a system with one seed.

    Args:
        recipe_name: Name or path of the recipe, as the user typed it.
        recipe: The recipe with the overrides and the seed.
        seed: The seed.
        folder: Folder of the run.
    """

    recipe_name: str
    recipe: Recipe
    seed: int
    folder: Path

    def is_finished(self) -> bool:
        """Return whether every member is trained."""
        return bool(members_of_run(self.folder)) and not unfinished_members(self.folder)

    def changes(self) -> list[str]:
        """Return a line for each value in which the trained recipe differs from the shipped recipe."""
        shipped = load_recipe(self.recipe_name, [f"trainer.seed={self.seed}"])
        return recipe_differences(shipped, load_recipe(str(self.folder / RECIPE_FILE)))


def _plan_run(name: str, seed: int, overrides: Sequence[str], folder: Path) -> _Run:
    recipe = load_recipe(name, [*overrides, f"trainer.seed={seed}"])
    return _Run(name, recipe, seed, folder / recipe.name / f"seed-{seed}")


def _train_all(
    runs: Sequence[_Run], train: Callable[[Recipe, Path], object], *, share: bool, seeds: int, reporter: Reporter
) -> None:
    """Train all runs. If other processes share them, skip finished runs and wait until all are finished.

    Raises:
        DivergedError: Some runs diverged. All other runs are trained.
    """
    pending = list(runs)
    announced: set[_Run] = set()
    diverged: dict[_Run, DivergedError] = {}
    while pending := [run for run in pending if not (share and run.is_finished())]:
        in_use = []
        for run in pending:
            if run not in announced:  # a run that another process is training is tried several times
                announced.add(run)
                reporter(RunStarted(run.recipe.name, run.seed, seeds))
            try:
                train(run.recipe, run.folder)
            except RunInUseError:
                if not share:
                    raise
                in_use.append(run)
            except DivergedError as error:
                diverged[run] = error
        if in_use == pending:
            reporter(WaitingForRun(pending[0].folder))
            time.sleep(_POLL_INTERVAL_S)
        pending = in_use
    if diverged:
        raise DivergedError(
            f"{len(diverged)} of {len(runs)} runs diverged: "
            + "; ".join(
                f"{printable(run.recipe.name)}, seed {run.seed}: {error.message}" for run, error in diverged.items()
            ),
            hint="all other runs are trained; to see their results, leave out the diverged systems or use fewer seeds",
            remedies=["skip-done"],
        )


def _require_reference(recipe: Recipe) -> ReferenceSpec:
    if recipe.reference is None:
        raise UsageError(
            f"recipe {printable(recipe.name)} has no [reference] table, so there is no score to compare with",
            hint="add a [reference] table with a source to the recipe, or train it with fmcli train",
        )
    return recipe.reference


def _check_options(overrides: Sequence[str], *, skip_done: bool, overwrite: bool) -> None:
    if skip_done and overwrite:
        raise UsageError("finished runs can be kept or overwritten, not both", remedies=["skip-done", "overwrite"])
    for override in overrides:
        if override.partition("=")[0].strip().endswith("trainer.seed"):
            raise UsageError(
                f"cannot set {printable(override)}: the runs of a system have the seeds 0, 1, …", remedies=["seeds"]
            )


def _check_classes(recipe: Recipe, reference: ReferenceSpec, data_root: Path | None) -> None:
    """Check before training that the images exist and have all classes of the reference."""
    names = load_checked_splits(recipe, data_root).train.class_names
    for name in reference.test_recall:
        if name not in names:
            raise RecipeError(
                f"recipe {printable(recipe.name)}: reference.test_recall.{printable(name)}: no such class; "
                f"{did_you_mean(name, names)}",
                hint="use the class names that fmcli data info shows",
            )


def _check_folders(systems: Sequence[Sequence[_Run]], *, may_exist: bool) -> None:
    """Check before training that each system has its own folder, and that no run exists unless `may_exist`."""
    if len({first.folder for first, *_ in systems}) < len(systems):
        raise UsageError(
            f"two of {', '.join(printable(first.recipe_name) for first, *_ in systems)} have the same name",
            hint="give each recipe once, or set a different name = … in one of the files",
        )
    existing = [run.folder for system in systems for run in system if (run.folder / RECIPE_FILE).is_file()]
    if existing and not may_exist:
        raise UsageError(
            f"{printable(existing[0])} already has a run"
            + (f" (1 of {len(existing)} existing runs)" if existing[1:] else ""),
            remedies=["skip-done", "overwrite", "output"],
        )


def _summarize(
    runs: Sequence[_Run], reference: ReferenceSpec, device: torch.device, data_root: Path | None
) -> SystemResult:
    changes = dict.fromkeys(line for run in runs for line in run.changes())
    scores = [_score(run, device, data_root) for run in runs]
    return SystemResult(runs[0].recipe.name, reference, scores, tuple(changes))


def _score(run: _Run, device: torch.device, data_root: Path | None) -> SeedResult:
    """Evaluate the vote of a finished run, and summarise how it was trained."""
    pool = open_pool([run.folder], device=str(device))
    headers = {file: read_header(file) for file in find_checkpoints(run.folder)}
    first, *_ = headers.values()
    evaluations = {
        split: evaluate_ensemble(vote_on_split(pool, pool.choose_rule(), split, data_root=data_root, calibrate=False))
        for split in _SCORED_SPLITS
        if split == "test" or split in first.data_digests
    }
    trained = {file.parent: header.member for file, header in headers.items() if header.snapshot is None}
    histories = [read_history(folder) for folder in trained]
    kept = [_kept_epoch(history, member) for history, member in zip(histories, trained.values(), strict=True)]
    test = evaluations["test"]
    accuracy: dict[str, float] = {split: one.vote.report.accuracy for split, one in evaluations.items()}
    recall = zip(test.vote.report.class_names, test.vote.report.classes, strict=True)
    return SeedResult(
        seed=run.seed,
        accuracy=accuracy | {"train": fmean(epoch.train_accuracy for epoch in kept)},
        n_images={split: one.vote.report.macro.support for split, one in evaluations.items()},
        members={member.name: member.report.accuracy for member in test.members},
        recall={name: score.recall for name, score in recall},
        epochs=fmean(epoch.epoch for epoch in kept),
        seconds=sum(epoch.seconds for history in histories for epoch in history),
        trained_on=first.trained_on | first.versions,
    )


def _kept_epoch(history: Sequence[EpochFinished], member: MemberSpec) -> EpochFinished:
    trainer = member.trainer
    return history[best_epoch(history, trainer.monitor)] if trainer.keep == "best" else history[-1]
