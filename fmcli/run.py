"""A run: every member of a recipe trained into one folder."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.augment import AlbumentationsAugment
from fmcli.checkpoint import MODEL_FILE, RECIPE_FILE
from fmcli.data import load_images, split_images
from fmcli.errors import UsageError, did_you_mean, printable
from fmcli.events import EpochFinished, Reporter, ignore
from fmcli.files import write_atomic
from fmcli.recipe import KnownSource, Recipe, dump_recipe, load_recipe
from fmcli.recipe.layers import trace_recipe
from fmcli.trainer import HISTORY_FILE, STATE_FILE, VALIDATION_FILE, train_member


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Args:
        folder: The run's folder.
        histories: For each member that was asked for, an entry an epoch.
    """

    folder: Path
    histories: dict[str, list[EpochFinished]]


def train_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    members: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    data_root: Path | None = None,
    reporter: Reporter = ignore,
) -> RunResult:
    """Train members of a recipe, one after another.

    Everything that can be wrong with recipe, data and folder is found before the first step.

    Args:
        recipe: The recipe.
        folder: The run's folder, e.g. `checkpoints/quick`.
        device: Where to train.
        members: Which ones; by default all.
        resume: Go on with what is in the folder: finished members stay, a begun one goes on.
        overwrite: Remove the run that is in the folder first.
        data_root: Where to look first for built-in sources.
        reporter: Told of what happens.

    Returns:
        The histories.

    Raises:
        UsageError: The folder holds a run and neither `resume` nor `overwrite` is set, or holds something
            else; or a member is not in the recipe.
        RecipeError, DataError, CheckpointError, DeviceError, FmcliError: See `trainer.train_member`.
    """
    names = _choose_members(recipe, members)
    _check_folder(folder, recipe, resume=resume, overwrite=overwrite)
    splits = split_images(load_images(recipe.data, data_root=data_root), recipe.data)
    trace_recipe(recipe, KnownSource(splits.train.input_shape, splits.train.class_names))
    check_augmentation(recipe, splits.train.input_shape)
    if overwrite:
        _remove_run(folder)
    write_atomic(folder / RECIPE_FILE, dump_recipe(recipe).encode())
    histories = {
        name: train_member(recipe, name, splits, folder / name, device=device, resume=resume, reporter=reporter)
        for name in names
    }
    return RunResult(folder, histories)


def _choose_members(recipe: Recipe, wanted: Sequence[str]) -> list[str]:
    names = [member.name for member in recipe.members]
    for name in wanted:
        if name not in names:
            raise UsageError(f"recipe {recipe.name} has no member {printable(name)!r}; {did_you_mean(name, names)}")
    return [name for name in names if not wanted or name in wanted]


def _check_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("--resume keeps a run and --overwrite removes it: give one of them")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError(
            f"{printable(folder)} exists and is not a run of fmcli",
            hint="choose another folder with --output",
        )
    if not resume and not overwrite:
        raise UsageError(
            f"{printable(folder)} already holds a run",
            hint="--resume goes on with it; --overwrite starts afresh; --output trains elsewhere",
        )
    if resume:
        _check_same_recipe(load_recipe(str(folder / RECIPE_FILE)), recipe, folder)


def _check_same_recipe(old: Recipe, new: Recipe, folder: Path) -> None:
    """Refuse to resume with another recipe, saying where the two differ; names, votes and references may."""
    differences = _differences(
        {
            "data": old.data.model_dump(),
            "members": {member.name: member.model_dump() for member in old.members},
        },
        {
            "data": new.data.model_dump(),
            "members": {member.name: member.model_dump() for member in new.members},
        },
    )
    if differences:
        raise UsageError(
            f"{printable(folder)} was begun with another recipe:\n  " + "\n  ".join(differences[:10]),
            hint="drop the change to resume; --overwrite starts afresh; --output trains elsewhere",
        )


def _differences(old: object, new: object, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in (*old, *(key for key in new if key not in old))
            for line in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: was {printable(old)}, now {printable(new)}"]


def check_augmentation(recipe: Recipe, input_shape: tuple[int, int, int] = (1, 28, 28)) -> None:
    """Build every albumentations pipeline of a recipe once, and try it on a blank picture.

    Raises:
        RecipeError: One cannot be built, or changes a picture's size.
    """
    for member in recipe.members:
        if member.augment.albumentations:
            AlbumentationsAugment(member.augment.albumentations, input_shape)


def _remove_run(folder: Path) -> None:
    """Remove the files of a run, and nothing that is not ours."""
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.is_dir() and not place.is_symlink():
            for name in (MODEL_FILE, STATE_FILE, HISTORY_FILE, VALIDATION_FILE):
                (place / name).unlink(missing_ok=True)
            if not any(place.iterdir()):
                shutil.rmtree(place)
    (folder / RECIPE_FILE).unlink(missing_ok=True)
