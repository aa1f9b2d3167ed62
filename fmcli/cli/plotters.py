"""Collect the data for figures, draw them and write them to files.

A plotter is a function that draws one figure. Plotters are collected first and called later, so that data is loaded
only for the requested figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcli.choices import FigureName, SplitName
from fmcli.errors import CheckpointError, DataError, UsageError, printable
from fmcli.storage.atomic import folder_names

if TYPE_CHECKING:
    from fmcli.data import Splits
    from fmcli.ensemble import VotingResult
    from fmcli.ensemble.predictions import Predictions
    from fmcli.events import EpochFinished
    from fmcli.members.pool import Pool
    from fmcli.recipe import DataSpec, TrainerSpec
    from fmcli.report.console import Terminal

Plotters = dict[FigureName, Callable[[], Any]]
"""The plotter of each figure. It returns a matplotlib figure."""
_MAX_NAMES_IN_TITLE = 4


# --- files ------------------------------------------------------------------------------------------------


def save_figures(
    plotters: Plotters, files: Mapping[FigureName, Path], terminal: Terminal, *, strict: bool = False
) -> list[Path]:
    """Draw all figures, then write them and return their paths. Skip figures without data and print their names.

    Args:
        plotters: The plotter of each figure.
        files: The path of each figure.
        terminal: Prints the skipped figures.
        strict: Whether to raise an error instead of skipping a figure.

    Raises:
        DataError, CheckpointError: A figure has no data, and `strict` is true.
    """
    from fmcli.report.plots.files import save_figure

    figures = {}
    for name, draw in plotters.items():
        try:
            figures[name] = draw()
        except (CheckpointError, DataError) as error:
            if strict:
                raise
            terminal.note(f"skipped {name}: {printable(error.message)}")
    for name, figure in figures.items():
        if missing := save_figure(figure, files[name]):
            terminal.note(f"no installed font has {missing}; {printable(files[name])} shows boxes instead")
    return [files[name] for name in figures]


def write_plots(folder: Path, plotters: Plotters, terminal: Terminal) -> None:
    """Write figures as PNG files to the folder that `--plots` gives."""
    for path in save_figures(plotters, {name: folder / f"{name}.png" for name in plotters}, terminal):
        terminal.note(f"wrote {printable(path)}")


# --- images -----------------------------------------------------------------------------------------------


def data_plotters(spec: DataSpec, splits: Splits, *, split: SplitName = "train") -> Plotters:
    """Return plotters for samples of a split and the class counts of all splits.

    Raises:
        DataError: There is no such split.
    """
    from fmcli.report.plots.class_counts import class_count_figure
    from fmcli.report.plots.images import SAMPLES_PER_CLASS, sample_figure

    shown, names = splits.named(split).first_of_each_class(SAMPLES_PER_CLASS), splits.train.class_names
    counts = {name: images.counts() for name, images in splits.present().items()}
    return {
        "samples": lambda: sample_figure(shown.images, shown.labels, names, source=f"{spec.source}, {split}"),
        "class-counts": lambda: class_count_figure(counts, names, source=spec.source),
    }


# --- histories --------------------------------------------------------------------------------------------


def curve_plotters(
    histories: Mapping[str, Sequence[EpochFinished]], trainers: Mapping[str, TrainerSpec], of: str
) -> Plotters:
    """Return a plotter for learning curves.

    Args:
        histories: The epochs of each member.
        trainers: The trainer of each member, if known. It determines which epoch is marked as best.
        of: Name of the run, for the title.
    """
    from fmcli.checkpoints.history import best_epoch
    from fmcli.report.plots.curves import curve_figure

    best = {}
    for member, history in histories.items():
        trainer = trainers.get(member)
        scored = [epoch for epoch in history if not epoch.retrained and epoch.validation_loss is not None]
        if scored and trainer is not None and trainer.keep in ("best", "retrained"):
            best[member] = best_epoch(scored, trainer.monitor) + 1
    return {"curves": lambda: curve_figure(histories, of=of, best=best)}


def run_curve_plotters(paths: Iterable[Path]) -> Plotters:
    """Return a plotter for the learning curves of finished and partial runs and members.

    Raises:
        CheckpointError: A history is missing or damaged.
    """
    from fmcli.checkpoints.history import HISTORY_FILE, read_history
    from fmcli.checkpoints.layout import make_names_unique

    # A member has one curve, even if it is given twice: by its own folder and by its run.
    folders = list({folder.resolve(): folder for path in paths for folder in _history_folders(path)}.values())
    histories = [read_history(folder) for folder in folders]
    names = make_names_unique(
        [history[0].member for history in histories], [folder / HISTORY_FILE for folder in folders]
    )
    trainers = {name: trainer for name, folder in zip(names, folders, strict=True) if (trainer := _trainer_of(folder))}
    runs = dict.fromkeys(folder.resolve().parent.name for folder in folders)
    return curve_plotters(dict(zip(names, histories, strict=True)), trainers, of=", ".join(runs))


def _history_folders(path: Path) -> list[Path]:
    """Return the folders with a history that belong to a run, member or checkpoint."""
    from fmcli.checkpoints.history import HISTORY_FILE
    from fmcli.checkpoints.layout import MODEL_FILE, members_of_run, missing_path_error

    if not path.exists():
        raise missing_path_error(path)
    folder = path.parent if path.is_file() else path
    folders = [folder]
    if folder == path and not any((path / name).is_file() for name in (MODEL_FILE, HISTORY_FILE)):
        in_run = sorted(file.parent.name for file in path.glob(f"*/{HISTORY_FILE}"))
        folders = [path / name for name in members_of_run(path) or in_run]
    folders = [folder for folder in folders if (folder / HISTORY_FILE).is_file()]
    if not folders:
        raise CheckpointError(
            f"{printable(path)} has no training history",
            hint=f"learning curves need the {HISTORY_FILE} that fmcli train writes next to {MODEL_FILE}",
        )
    return folders


def _trainer_of(folder: Path) -> TrainerSpec | None:
    """Return the trainer from a member's checkpoint or from its run's recipe, or None if there is neither."""
    from fmcli.checkpoints.checkpoint import read_header
    from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
    from fmcli.errors import RecipeError
    from fmcli.recipe import load_recipe

    if (folder / MODEL_FILE).is_file():
        return read_header(folder).member.trainer
    try:
        members = load_recipe(str(folder.parent / RECIPE_FILE)).members
    except RecipeError:
        return None
    return next((member.trainer for member in members if member.name == folder.name), None)


# --- searches ---------------------------------------------------------------------------------------------


def trial_plotters(folders: Sequence[Path]) -> Plotters:
    """Return a plotter for the trials of a search.

    Raises:
        UsageError: There are several folders, or the folder has no search.
    """
    from fmcli.experiments.search import read_search
    from fmcli.report.plots.search import search_figure

    if len(folders) > 1:
        raise UsageError("the trials figure shows one search", hint="give the folder of one search")
    result = read_search(folders[0])
    return {"trials": lambda: search_figure(result)}


# --- evaluations ------------------------------------------------------------------------------------------


def evaluation_plotters(pool: Pool, result: VotingResult, data_root: Path | None) -> Plotters:
    """Return plotters for the evaluation of a vote. The vote of one member is its own prediction.

    Args:
        pool: The members. The recipe of the first network has the source of the images.
        result: The predictions and the vote.
        data_root: Folder of datasets that is searched first.
    """
    from fmcli.report.plots.classified import ClassifiedSplit
    from fmcli.report.plots.confidence import coverage_figure, reliability_figure
    from fmcli.report.plots.confusion import confusion_figure
    from fmcli.report.plots.images import mistake_figure, prediction_figure
    from fmcli.report.plots.precision_recall import precision_recall_figure

    first = result.predictions[0]
    names = [member.member for member in result.predictions]
    listed = ", ".join(names) if len(names) <= _MAX_NAMES_IN_TITLE else f"{len(names)} members"
    name = names[0] if len(names) == 1 else f"{result.combiner.rule.name} vote of {listed}"
    classified = ClassifiedSplit(
        name, first.split, first.class_names, first.labels, result.vote.labels, result.output_probabilities
    )

    @cache
    def images() -> Any:
        from fmcli.data import load_splits

        if not pool.networks:
            raise DataError("the members are predictions files, which do not contain the path of their images")
        return load_splits(pool.networks[0].training.data, data_root).named(first.split).images

    return {
        "confusion": lambda: confusion_figure(classified),
        "precision-recall": lambda: precision_recall_figure(classified),
        "reliability": lambda: reliability_figure(classified),
        "coverage": lambda: coverage_figure(classified),
        "predictions": lambda: prediction_figure(images(), classified),
        "mistakes": lambda: mistake_figure(images(), classified),
    }


def write_member_plots(
    folder: Path, pool: Pool, predictions: Sequence[Predictions], data_root: Path | None, terminal: Terminal
) -> None:
    """Write the evaluation figures of each member. Several members get one subfolder each."""
    from fmcli.ensemble import Combiner, combine_predictions, make_rule

    names = [member.member for member in predictions]
    folders = [folder / word for word in folder_names(names)] if len(names) > 1 else [folder]
    for index, (member_folder, prediction) in enumerate(zip(folders, predictions, strict=True)):
        result = combine_predictions([prediction], Combiner(make_rule("majority")))
        write_plots(member_folder, evaluation_plotters(pool.subset([index]), result, data_root), terminal)
