"""Find the files in a run folder, and name its members."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fmcli.choices import SOURCES, SPLITS
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, RecipeError, Remedy, printable
from fmcli.recipe.load import load_recipe
from fmcli.recipe.recipe import MemberSpec
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.storage.atomic import remove_files

MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.toml"
LAST_GOOD = "last-good"
"""Folder in a member's folder with the weights that were saved last before the loss became NaN or infinite."""
_SNAPSHOT = re.compile(r"snapshot-([1-9]\d*)", re.ASCII)


def missing_path_error(path: Path) -> CheckpointError:
    """Return the error for a path that should be a run or a part of one, but does not exist."""
    if str(path).partition(":")[0] in SOURCES:
        return CheckpointError(
            f"{printable(path)} is a source of images, not a run", hint="give a run that was trained on it"
        )
    return CheckpointError(f"{printable(path)} does not exist", remedies=["train"])


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoint files of a run or a member, in order.

    A member with snapshots has several checkpoints. The last of them has its final weights.

    Args:
        path: A run folder, a member's folder or a checkpoint file.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    if path.is_file():
        return [path]
    if (path / MODEL_FILE).is_file():
        return _member_checkpoints(path)
    if not path.is_dir():
        raise missing_path_error(path)
    members = _member_folders(path)
    if not members:
        is_run = (path / RECIPE_FILE).is_file()
        raise CheckpointError(
            f"no trained member in {printable(path)}",
            hint=None if is_run else "give a run folder, a member's folder or its model.safetensors",
            remedies=[Remedy("resume-run", path)] if is_run else [],
        )
    return [file for member in members for file in _member_checkpoints(member)]


def _member_folders(run: Path) -> list[Path]:
    """Return the folders of a run's trained members, in the order of the recipe. Without a recipe, sort by name."""
    folders = {path.parent.name: path.parent for path in sorted(run.glob(f"*/{MODEL_FILE}"))}
    names = [name for name in members_of_run(run) or folders if name in folders]
    # A member's folder with snapshots but without final weights is not a run.
    return [folders[name] for name in names if name != LAST_GOOD and not is_snapshot_name(name)]


def _member_checkpoints(member: Path) -> list[Path]:
    files = [folder / MODEL_FILE for folder in (*snapshot_folders(member), member)]
    return [file for file in files if file.is_file()]


def snapshot_name(number: int) -> str:
    """Return the name of a member's snapshot, which is also its folder in the member's folder. Numbers start at 1."""
    return f"snapshot-{number}"


def is_snapshot_name(name: str) -> bool:
    """Return whether a folder has the name of a snapshot."""
    return _SNAPSHOT.fullmatch(name) is not None


def snapshot_folders(member: Path) -> list[Path]:
    """Return the snapshot folders in a member's folder, sorted by number."""
    folders = [path for path in member.glob("*/") if not path.is_symlink()]
    numbered = {int(found[1]): path for path in folders if (found := _SNAPSHOT.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def remove_snapshots(member: Path) -> None:
    """Remove the snapshots of a member. Keep other files in the snapshots' folders."""
    for folder in snapshot_folders(member):
        _remove_weights(folder)


def remove_last_good(member: Path) -> None:
    """Remove the weights in `LAST_GOOD`, which were saved when training diverged."""
    folder = member / LAST_GOOD
    if folder.is_dir() and not folder.is_symlink():
        _remove_weights(folder)


def _remove_weights(folder: Path) -> None:
    remove_files(folder, (MODEL_FILE, *map(predictions_file, SPLITS)))


def missing_snapshots(member: MemberSpec, folder: Path) -> list[str]:
    """Return the names of the snapshots that the recipe asks for and that are missing in a trained member's folder."""
    schedule = member.schedule
    if member.trainer.keep != "snapshots" or not isinstance(schedule, CyclicSchedule):
        return []
    # The last cycle ends with the final weights, which are not a snapshot.
    names = [snapshot_name(number) for number in range(1, schedule.cycles)]
    return [name for name in names if not (folder / name / MODEL_FILE).is_file()]


def members_of_run(run: Path) -> list[str]:
    """Return the names of the members in a run's recipe; empty if the recipe is missing or damaged."""
    return [member.name for member in _member_specs(run)]


def _member_specs(run: Path) -> Sequence[MemberSpec]:
    try:
        return load_recipe(str(run / RECIPE_FILE)).members
    except RecipeError:
        return ()


def unfinished_members(run: Path) -> list[str]:
    """Return the names of a run's members that have no checkpoint yet; empty if the path is not a run."""
    return [name for name in members_of_run(run) if not (run / name / MODEL_FILE).is_file()]


def lost_snapshots(run: Path) -> list[str]:
    """Return the names of missing snapshots of a run's trained members; empty if the path is not a run."""
    return [
        f"{member.name}/{name}"
        for member in _member_specs(run)
        if (run / member.name / MODEL_FILE).is_file()
        for name in missing_snapshots(member, run / member.name)
    ]


def make_names_unique(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Return unique names for members: prefix equal names with the last folders in the path of their run.

    Args:
        names: One name per member.
        files: One file in the folder of each member or snapshot.

    Returns:
        Unique names. Unique names in the input are unchanged.
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
    """Return the run folder of a file in a member's folder or, one level deeper, in a snapshot's folder."""
    folder = file.parent
    for _ in name.split("/"):
        folder = folder.parent
    return folder
