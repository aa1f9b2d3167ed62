"""Collect the data for figures, draw them and write them to files.

A plotter is a function that draws one figure. Plotters are collected first and called later, so that data is loaded
only for the requested figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmcli.choices import FigureName, SplitName
from fmcli.errors import CheckpointError, DataError, UsageError, printable
from fmcli.storage.atomic import folder_names

if TYPE_CHECKING:
    from fmcli.data import ImageSet
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


def draw_figures(plotters: Plotters, terminal: Terminal, *, strict: bool = False) -> dict[FigureName, Any]:
    """Draw figures, and print which ones are skipped because they have no data.

    Args:
        plotters: The plotter of each figure.
        terminal: Prints the skipped figures.
        strict: Whether to raise an error instead of skipping a figure.

    Raises:
        DataError, CheckpointError: A figure has no data, and `strict` is true.
    """
    figures: dict[FigureName, Any] = {}
    for name, draw in plotters.items():
        try:
            figures[name] = draw()
        except (CheckpointError, DataError) as error:
            if strict:
                raise
            terminal.note(f"skipped {name}: {printable(error.message)}")
    return figures


def save_figures(figures: Mapping[FigureName, Any], files: Mapping[FigureName, Path], terminal: Terminal) -> list[Path]:
    """Write figures and return their paths."""
    from fmcli.report.plots import save_figure

    for name, figure in figures.items():
        missing = save_figure(figure, files[name])
        if missing:
            terminal.note(f"no installed font has {missing}; {printable(files[name])} shows boxes instead")
    return [files[name] for name in figures]


def draw_later(names: Sequence[FigureName], prepare: Callable[[], Plotters]) -> Plotters:
    """Return plotters that call `prepare` once, when the first of them is called."""
    prepared = cache(prepare)

    def draw(name: FigureName) -> Any:
        return prepared()[name]()

    return {name: partial(draw, name) for name in names}


def write_plots(folder: Path, plotters: Plotters, terminal: Terminal) -> None:
    """Write figures as PNG files into the folder that `--plots` names."""
    figures = draw_figures(plotters, terminal)
    for path in save_figures(figures, {name: folder / f"{name}.png" for name in figures}, terminal):
        terminal.note(f"wrote {printable(path)}")


# --- images -----------------------------------------------------------------------------------------------


def data_plotters(spec: DataSpec, data_root: Path | None, *, split: SplitName = "train") -> Plotters:
    """Return plotters for samples of a split and the class counts of all splits.

    Raises:
        DataError: The images are missing or damaged, or there is no such split.
    """
    from fmcli.data import load_splits
    from fmcli.report.plots import SAMPLES_PER_CLASS, class_count_figure, sample_figure

    splits = load_splits(spec, data_root)
    shown, names = splits.named(split).first_of_each_class(SAMPLES_PER_CLASS), splits.train.class_names
    counts = {name: images.counts() for name, images in splits.present().items()}
    source = f"{spec.source}, {split}"
    return {
        "samples": lambda: sample_figure(shown.images, shown.labels, names, source=source),
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
    from fmcli.report.plots import curve_figure

    best = {}
    for member, history in histories.items():
        first, trainer = [epoch for epoch in history if not epoch.retrained], trainers.get(member)
        if (
            trainer is not None
            and trainer.keep in ("best", "retrained")
            and first
            and first[0].validation_loss is not None
        ):
            best[member] = best_epoch(first, trainer.monitor) + 1
    return {"curves": lambda: curve_figure(histories, of=of, best=best)}


def run_curve_plotters(paths: Iterable[Path]) -> Plotters:
    """Return a plotter for the learning curves of finished and partial runs and members.

    Raises:
        CheckpointError: A history is missing or damaged.
    """
    from fmcli.checkpoints.history import HISTORY_FILE, read_history
    from fmcli.checkpoints.layout import make_names_unique

    # A member has one curve, even if it is named twice: by its own folder and by its run.
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
    from fmcli.checkpoints.layout import MODEL_FILE, members_of_run

    if not path.exists():
        raise CheckpointError(f"there is nothing at {printable(path)}", remedies=["train"])
    own = path.parent if path.is_file() else path
    in_run = [file.parent for file in sorted(path.glob(f"*/{HISTORY_FILE}"))]
    if path.is_file() or (path / MODEL_FILE).is_file() or (path / HISTORY_FILE).is_file():
        folders = [own] if (own / HISTORY_FILE).is_file() else []
    else:
        order = members_of_run(path)
        folders = sorted(in_run, key=lambda folder: order.index(folder.name) if folder.name in order else len(order))
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


def trial_plotters(folders: Sequence[str]) -> Plotters:
    """Return a plotter for the trials of a search.

    Raises:
        UsageError: There are several folders, or the folder holds no search.
    """
    from fmcli.experiments.search import read_search
    from fmcli.report.plots import search_figure

    if len(folders) > 1:
        raise UsageError("the trials figure shows one search", hint="name the folder of one search")
    result = read_search(Path(folders[0]))
    return {"trials": lambda: search_figure(result)}


# --- evaluations ------------------------------------------------------------------------------------------


def evaluation_plotters(pool: Pool, result: VotingResult, data_root: Path | None) -> Plotters:
    """Return plotters for the evaluation of a vote. The vote of one member is its own prediction.

    Args:
        pool: The members. Their first network says where the images are.
        result: The predictions and the vote.
        data_root: Folder of datasets that is searched first.
    """
    from fmcli.report import plots

    vote, rule, first = result.vote, result.rule, result.predictions[0]
    names = [member.member for member in result.predictions]
    listed = ", ".join(names) if len(names) <= _MAX_NAMES_IN_TITLE else f"{len(names)} members"
    name = names[0] if len(names) == 1 else f"{rule.vote} vote of {listed}"
    classified = plots.ClassifiedSplit(
        name, first.split, first.class_names, first.labels, vote.labels, result.output_probabilities
    )

    @cache
    def images() -> Any:
        if not pool.checkpoints:
            raise DataError("the members are predictions files, which do not say where their images are")
        return _load_split(pool.checkpoints[0].header.data, first.split, data_root).images

    return {
        "confusion": lambda: plots.confusion_figure(classified),
        "precision-recall": lambda: plots.precision_recall_figure(classified),
        "reliability": lambda: plots.reliability_figure(classified),
        "coverage": lambda: plots.coverage_figure(classified),
        "predictions": lambda: plots.prediction_figure(images(), classified),
        "mistakes": lambda: plots.mistake_figure(images(), classified),
    }


def _load_split(spec: DataSpec, split: str, data_root: Path | None) -> ImageSet:
    from fmcli.data import load_splits

    return load_splits(spec, data_root).named(split)


def write_member_plots(
    folder: Path, pool: Pool, predictions: Sequence[Predictions], data_root: Path | None, terminal: Terminal
) -> None:
    """Write the evaluation figures of each member. Several members get one subfolder each."""
    from fmcli.ensemble import Combiner, combine_predictions

    names = [member.member for member in predictions]
    folders = [folder / word for word in folder_names(names)] if len(names) > 1 else [folder]
    for index, (member_folder, prediction) in enumerate(zip(folders, predictions, strict=True)):
        result = combine_predictions([prediction], Combiner())
        write_plots(member_folder, evaluation_plotters(pool.subset([index]), result, data_root), terminal)
