"""Where the files of runs and of their members lie, and what members are called."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fmcli.choices import SPLITS
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, RecipeError, printable
from fmcli.recipe.load import load_recipe
from fmcli.recipe.specs import MemberSpec
from fmcli.recipe.training import CyclicSchedule
from fmcli.storage.atomic import remove_files

MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
LAST_GOOD = "last-good"
"""A folder in a member's: the weights that were saved last before the loss was no longer finite."""
_SNAPSHOT = re.compile(r"snapshot-([1-9]\d*)", re.ASCII)


def find_checkpoints(places: Sequence[Path]) -> list[Path]:
    """Return the checkpoint files that run folders, member folders and files stand for, in order.

    A member's folder stands for its snapshots, where it has some, and then for the weights that it ended with.

    Args:
        places: Each a run folder, a member's folder or a file.

    Raises:
        CheckpointError: One holds no checkpoint, or two stand for the same.
    """
    found: list[Path] = []
    for place in places:
        if place.is_file():
            found.append(place)
            continue
        if (place / MODEL_FILE).is_file():
            found += _with_snapshots(place)
            continue
        if not place.is_dir():
            raise CheckpointError(
                f"there is nothing at {printable(place)}", hint="fmcli train --recipe quick makes a run"
            )
        members = _members_of(place)
        if not members:
            raise CheckpointError(
                f"{printable(place)} holds no trained member",
                hint=f"fmcli train --recipe {printable(place / RECIPE_FILE)} --output {printable(place)} --resume"
                if (place / RECIPE_FILE).is_file()
                else "give a run folder, a member's folder or its model.safetensors",
            )
        found += [path for member in members for path in _with_snapshots(member)]
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise CheckpointError(f"{printable(path)} is named twice", hint="each member has one vote: name it once")
        seen.add(path.resolve())
    return found


def _members_of(run: Path) -> list[Path]:
    """Return the folders of a run's trained members, in the order of its recipe where it has one."""
    folders = {path.parent.name: path.parent for path in sorted(run.glob(f"*/{MODEL_FILE}"))}
    names = [name for name in members_of_run(run) or folders if name in folders]
    # The folder of a member without weights of its own is no run, though it may have snapshots.
    return [folders[name] for name in names if name != LAST_GOOD and not is_snapshot_name(name)]


def _with_snapshots(member: Path) -> list[Path]:
    """Return the checkpoints in a member's folder: its snapshots, then its own."""
    files = [folder / MODEL_FILE for folder in (*snapshot_folders(member), member)]
    return [file for file in files if file.is_file()]


def snapshot_name(number: int) -> str:
    """Return what a member's n-th snapshot is called, counted from 1, and its folder in the member's."""
    return f"snapshot-{number}"


def is_snapshot_name(name: str) -> bool:
    """Tell whether a folder in a member's is one of its snapshots."""
    return _SNAPSHOT.fullmatch(name) is not None


def snapshot_folders(member: Path) -> list[Path]:
    """Return the folders of a member's snapshots, in order."""
    folders = [path for path in member.glob("*/") if not path.is_symlink()]
    numbered = {int(found[1]): path for path in folders if (found := _SNAPSHOT.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def remove_snapshots(member: Path) -> None:
    """Remove the files of a member's snapshots, and nothing that is not ours."""
    for folder in snapshot_folders(member):
        _remove_weights(folder)


def remove_last_good(member: Path) -> None:
    """Remove what an earlier training left when its loss was no longer finite."""
    folder = member / LAST_GOOD
    if folder.is_dir() and not folder.is_symlink():
        _remove_weights(folder)


def _remove_weights(folder: Path) -> None:
    remove_files(folder, (MODEL_FILE, *map(predictions_file, SPLITS)))


def missing_snapshots(member: MemberSpec, folder: Path) -> list[str]:
    """Return the names of the snapshots that a trained member's folder should hold by its recipe, and does not."""
    schedule = member.schedule
    if member.trainer.keep != "snapshots" or not isinstance(schedule, CyclicSchedule):
        return []
    names = [snapshot_name(number) for number in range(1, schedule.cycles)]  # the last cycle's is the member itself
    return [name for name in names if not (folder / name / MODEL_FILE).is_file()]


def members_of_run(run: Path) -> list[str]:
    """Return a run's members by its recipe; none where that is missing or damaged, for checkpoints do without."""
    return [member.name for member in _specs_of_run(run)]


def _specs_of_run(run: Path) -> Sequence[MemberSpec]:
    try:
        return load_recipe(str(run / RECIPE_FILE)).members
    except RecipeError:
        return ()


def unfinished_members(places: Sequence[Path]) -> dict[Path, list[str]]:
    """Return, for each run folder that lacks some, the members of its recipe that have no checkpoint yet."""
    runs = [place for place in places if (place / RECIPE_FILE).is_file()]
    missing = {run: [name for name in members_of_run(run) if not (run / name / MODEL_FILE).is_file()] for run in runs}
    return {run: names for run, names in missing.items() if names}


def lost_snapshots(places: Sequence[Path]) -> dict[Path, list[str]]:
    """Return, for each run folder whose trained members lack some, the snapshots that its recipe asks for."""
    lost = {
        run: [
            f"{member.name}/{name}"
            for member in _specs_of_run(run)
            if (run / member.name / MODEL_FILE).is_file()
            for name in missing_snapshots(member, run / member.name)
        ]
        for run in places
        if (run / RECIPE_FILE).is_file()
    }
    return {run: names for run, names in lost.items() if names}


def make_names_unique(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return members' names, with as much of the path of their run before them as tells them apart.

    Args:
        names: Of members.
        files: One in each member's folder, or in a snapshot's in it.
    """
    runs = [_run_of(file.absolute(), name).parts for file, name in zip(files, names, strict=True)]
    shown = list(names)
    for depth in range(1, max(map(len, runs), default=0) + 1):
        counts = Counter(shown)
        if len(counts) == len(shown):
            break
        shown = [
            "/".join((*run[-depth:], name)) if counts[before] > 1 else before
            for before, run, name in zip(shown, runs, names, strict=True)
        ]
    counts = Counter(shown)
    return [name if counts[name] == 1 else str(file) for name, file in zip(shown, files, strict=True)]


def _run_of(file: Path, name: str) -> Path:
    """Return the folder of the run that a file in a member's folder belongs to; a snapshot's lies one deeper."""
    folder = file.parent
    for _ in name.split("/"):
        folder = folder.parent
    return folder
