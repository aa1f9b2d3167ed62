"""What the commands that draw figures share: from what they are drawn, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
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
    from fmcli.members import Pool
    from fmcli.recipe import DataSpec, TrainerSpec
    from fmcli.report.console import Terminal

Drawers = dict[FigureName, Callable[[], Any]]
"""For each figure, what draws it."""
_MOST_NAMES = 4  # members that a title names


# --- files ------------------------------------------------------------------------------------------------


def draw_figures(drawers: Drawers, terminal: Terminal, *, strict: bool = False) -> dict[FigureName, Any]:
    """Draw figures; where several are asked for, those that there is nothing for are left out with a note.

    Args:
        drawers: What to draw.
        terminal: Told what is left out.
        strict: Nothing may be left out.

    Raises:
        DataError, CheckpointError: There is nothing to draw one from, and `strict`.
    """
    figures: dict[FigureName, Any] = {}
    for name, draw in drawers.items():
        try:
            figures[name] = draw()
        except (CheckpointError, DataError) as error:
            if strict:
                raise
            terminal.note(f"left out {name}: {printable(error.message)}")
    return figures


def save_figures(figures: Mapping[FigureName, Any], files: Mapping[FigureName, Path], terminal: Terminal) -> list[Path]:
    """Write figures and return where they are."""
    from fmcli.report.plots import save_figure

    for name, figure in figures.items():
        lacking = save_figure(figure, files[name])
        if lacking:
            terminal.note(f"no font here has {lacking}: boxes in their place in {printable(files[name])}")
    return [files[name] for name in figures]


def draw_later(names: Sequence[FigureName], prepare: Callable[[], Drawers]) -> Drawers:
    """Return drawers that are prepared when the first of them is called."""
    prepared = cache(prepare)

    def drawer(name: FigureName) -> Callable[[], Any]:
        def draw() -> Any:
            return prepared()[name]()

        return draw

    return {name: drawer(name) for name in names}


def write_plots(folder: Path, drawers: Drawers, terminal: Terminal) -> None:
    """Draw what `--plots` of a command asks for into its folder."""
    figures = draw_figures(drawers, terminal)
    for path in save_figures(figures, {name: folder / f"{name}.png" for name in figures}, terminal):
        terminal.note(f"wrote {printable(path)}")


# --- images -----------------------------------------------------------------------------------------------


def data_drawers(spec: DataSpec, data_root: Path | None, *, split: SplitName = "train") -> Drawers:
    """Return what draws images: samples of a split, and class counts of all.

    Raises:
        DataError: They are missing or broken, or there is no such split.
    """
    from fmcli.data import load_splits
    from fmcli.report.plots import SAMPLES_OF_EACH, class_count_figure, sample_figure

    splits = load_splits(spec, data_root)
    shown, names = splits.named(split).first_of_each_class(SAMPLES_OF_EACH), splits.train.class_names
    counts = {name: images.counts() for name, images in splits.present().items()}
    source = f"{spec.source}, {split}"
    return {
        "samples": lambda: sample_figure(shown.images, shown.labels, names, source=source),
        "class-counts": lambda: class_count_figure(counts, names, source=spec.source),
    }


# --- histories --------------------------------------------------------------------------------------------


def curve_drawers(
    histories: Mapping[str, Sequence[EpochFinished]], trainers: Mapping[str, TrainerSpec], of: str
) -> Drawers:
    """Return what draws learning curves, with the epochs that the recipe keeps, or trains afresh by, marked."""
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


def curve_drawers_of(places: Iterable[Path]) -> Drawers:
    """Return what draws the learning curves of runs and members, finished or not.

    Raises:
        CheckpointError: One has no history, or a damaged one.
    """
    from fmcli.checkpoints.history import HISTORY_FILE, read_history
    from fmcli.checkpoints.layout import make_names_unique

    # A member that is named twice, as by its own folder and its run's, still has one curve.
    folders = list({folder.resolve(): folder for place in places for folder in _trained_folders(place)}.values())
    read = [read_history(folder) for folder in folders]
    names = make_names_unique([history[0].member for history in read], [folder / HISTORY_FILE for folder in folders])
    trainers = {name: trainer for name, folder in zip(names, folders, strict=True) if (trainer := _trainer_of(folder))}
    runs = dict.fromkeys(folder.resolve().parent.name for folder in folders)
    return curve_drawers(dict(zip(names, read, strict=True)), trainers, of=", ".join(runs))


def _trained_folders(place: Path) -> list[Path]:
    """Return the folders of members, with a history each, that a run, a member or a checkpoint stands for."""
    from fmcli.checkpoints.history import HISTORY_FILE
    from fmcli.checkpoints.layout import MODEL_FILE, members_of_run

    if not place.exists():
        raise CheckpointError(f"there is nothing at {printable(place)}", hint="fmcli train --recipe quick makes a run")
    own = place.parent if place.is_file() else place
    of_run = [path.parent for path in sorted(place.glob(f"*/{HISTORY_FILE}"))]
    if place.is_file() or (place / MODEL_FILE).is_file() or (place / HISTORY_FILE).is_file():
        folders = [own] if (own / HISTORY_FILE).is_file() else []
    else:
        order = members_of_run(place)
        folders = sorted(of_run, key=lambda path: order.index(path.name) if path.name in order else len(order))
    if not folders:
        raise CheckpointError(
            f"{printable(place)} has no history of its training",
            hint=f"learning curves need the {HISTORY_FILE} that fmcli train leaves beside {MODEL_FILE}",
        )
    return folders


def _trainer_of(folder: Path) -> TrainerSpec | None:
    """Return how a member was trained, by its checkpoint or its run's recipe; None where neither says."""
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


def trial_drawers(places: Sequence[str]) -> Drawers:
    """Return what draws the trials of a search.

    Raises:
        UsageError: There are several places, or there is no search.
    """
    from fmcli.experiments.search import read_search
    from fmcli.report.plots import search_figure

    if len(places) > 1:
        raise UsageError("the trials of one search at a time", hint="name one search's folder")
    result = read_search(Path(places[0]))
    return {"trials": lambda: search_figure(result)}


# --- evaluations ------------------------------------------------------------------------------------------


def evaluation_drawers(pool: Pool, result: VotingResult, data_root: Path | None) -> Drawers:
    """Return what draws the evaluation of a vote, which is a member's own where it is alone.

    Args:
        pool: The members.
        result: Their vote.
        data_root: Where to look first for built-in sources.
    """
    from fmcli.report import plots

    vote, rule, first = result.vote, result.rule, result.predictions[0]
    names = [one.member for one in result.predictions]
    listed = ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} members"
    name = names[0] if len(names) == 1 else f"{rule.vote} vote of {listed}"
    classified = plots.ClassifiedSplit(
        name, first.split, first.class_names, first.labels, vote.labels, result.output_probabilities
    )

    @cache
    def images() -> Any:
        if not pool.checkpoints:
            raise DataError("there are predictions alone, and they do not say where their images are")
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
    """Draw the evaluation of each member by itself, into a folder of its own where there are several."""
    from fmcli.ensemble import Combiner, combine_predictions

    names = [one.member for one in predictions]
    folders = [folder / word for word in folder_names(names)] if len(names) > 1 else [folder]
    for place, member, one in zip(folders, pool.single_members(), predictions, strict=True):
        write_plots(place, evaluation_drawers(member, combine_predictions([one], Combiner()), data_root), terminal)
