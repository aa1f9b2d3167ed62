"""Paths of the files in a run folder, and names of members."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fmcli.choices import SPLITS
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, RecipeError, Remedy, printable
from fmcli.recipe.load import load_recipe
from fmcli.recipe.recipe import MemberSpec
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.storage.atomic import remove_files

MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
LAST_GOOD = "last-good"
"""Folder in a member's folder: the weights saved last before the loss became NaN or infinite."""
_SNAPSHOT = re.compile(r"snapshot-([1-9]\d*)", re.ASCII)


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoint files in run folders and member folders, in order.

    A member's folder contains its snapshots, if any, and its final weights.

    Args:
        paths: Run folders, members' folders and checkpoint files.

    Raises:
        CheckpointError: A path has no checkpoint, or two paths lead to the same checkpoint.
    """
    found = [file for path in paths for file in _checkpoints_at(path)]
    check_distinct(found)
    return found


def _checkpoints_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / MODEL_FILE).is_file():
        return _member_checkpoints(path)
    if not path.is_dir():
        raise CheckpointError(f"there is nothing at {printable(path)}", remedies=["train"])
    members = _member_folders(path)
    if not members:
        is_run = (path / RECIPE_FILE).is_file()
        raise CheckpointError(
            f"{printable(path)} holds no trained member",
            hint=None if is_run else "give a run folder, a member's folder or its model.safetensors",
            remedies=[Remedy("resume-run", path)] if is_run else [],
        )
    return [file for member in members for file in _member_checkpoints(member)]


def check_distinct(files: Sequence[Path]) -> None:
    """Refuse two paths to one file.

    Raises:
        CheckpointError: A file is given twice.
    """
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise CheckpointError(f"{printable(file)} is named twice", hint="each member has one vote: name it once")
        seen.add(file.resolve())


def _member_folders(run: Path) -> list[Path]:
    """Return the folders of a run's trained members, in the recipe's order, or by name if there is no recipe."""
    folders = {path.parent.name: path.parent for path in sorted(run.glob(f"*/{MODEL_FILE}"))}
    names = [name for name in members_of_run(run) or folders if name in folders]
    # Snapshots do not make a member's folder a run, if its final weights are missing.
    return [folders[name] for name in names if name != LAST_GOOD and not is_snapshot_name(name)]


def _member_checkpoints(member: Path) -> list[Path]:
    files = [folder / MODEL_FILE for folder in (*snapshot_folders(member), member)]
    return [file for file in files if file.is_file()]


def snapshot_name(number: int) -> str:
    """Return the name of a member's n-th snapshot, counted from 1, and of its folder in the member's folder."""
    return f"snapshot-{number}"


def is_snapshot_name(name: str) -> bool:
    """Return whether a folder's name is that of a snapshot."""
    return _SNAPSHOT.fullmatch(name) is not None


def snapshot_folders(member: Path) -> list[Path]:
    """Return the snapshot folders in a member's folder, by number."""
    folders = [path for path in member.glob("*/") if not path.is_symlink()]
    numbered = {int(found[1]): path for path in folders if (found := _SNAPSHOT.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def remove_snapshots(member: Path) -> None:
    """Remove the snapshots of a member. Other files in their folders are kept."""
    for folder in snapshot_folders(member):
        _remove_weights(folder)


def remove_last_good(member: Path) -> None:
    """Remove the weights that a diverged training left in `LAST_GOOD`."""
    folder = member / LAST_GOOD
    if folder.is_dir() and not folder.is_symlink():
        _remove_weights(folder)


def _remove_weights(folder: Path) -> None:
    remove_files(folder, (MODEL_FILE, *map(predictions_file, SPLITS)))


def missing_snapshots(member: MemberSpec, folder: Path) -> list[str]:
    """Return the names of the snapshots that the recipe asks for and that a trained member's folder lacks."""
    schedule = member.schedule
    if member.trainer.keep != "snapshots" or not isinstance(schedule, CyclicSchedule):
        return []
    # The last cycle ends with the final weights, not with a snapshot.
    names = [snapshot_name(number) for number in range(1, schedule.cycles)]
    return [name for name in names if not (folder / name / MODEL_FILE).is_file()]


def members_of_run(run: Path) -> list[str]:
    """Return the names of the members in a run's recipe; none if the recipe is missing or damaged."""
    return [member.name for member in _member_specs(run)]


def _member_specs(run: Path) -> Sequence[MemberSpec]:
    try:
        return load_recipe(str(run / RECIPE_FILE)).members
    except RecipeError:
        return ()


def unfinished_members(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the members without a checkpoint for each run folder that has such members; other paths are ignored."""
    runs = [path for path in paths if (path / RECIPE_FILE).is_file()]
    missing = {run: [name for name in members_of_run(run) if not (run / name / MODEL_FILE).is_file()] for run in runs}
    return {run: names for run, names in missing.items() if names}


def lost_snapshots(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the missing snapshots of trained members for each run folder that lacks some; other paths are ignored."""
    lost = {
        run: [
            f"{member.name}/{name}"
            for member in _member_specs(run)
            if (run / member.name / MODEL_FILE).is_file()
            for name in missing_snapshots(member, run / member.name)
        ]
        for run in paths
        if (run / RECIPE_FILE).is_file()
    }
    return {run: names for run, names in lost.items() if names}


def make_names_unique(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return members' names, prefixed by the last parts of the run's path where this is needed to make them unique.

    Args:
        names: One name per member.
        files: One file in each member's (or snapshot's) folder.
    """
    runs = [_run_folder(file.absolute(), name).parts for file, name in zip(files, names, strict=True)]
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


def _run_folder(file: Path, name: str) -> Path:
    """Return the run folder of a file in a member's folder, or one level deeper in the folder of a snapshot."""
    folder = file.parent
    for _ in name.split("/"):
        folder = folder.parent
    return folder
