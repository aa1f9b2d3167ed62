"""Write the predictions of members to files."""

from collections.abc import Sequence
from pathlib import Path

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import Views
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file, save_predictions
from fmcli.errors import UsageError, printable
from fmcli.storage.atomic import folder_names


def find_other_predictions(paths: Sequence[Path]) -> list[Path]:
    """Return other members' predictions on the same split in the folder that `write_predictions` wrote to.

    Args:
        paths: The files that `write_predictions` returned.
    """
    folder = paths[0].parent.parent
    return [path for path in sorted(folder.glob(f"*/{paths[0].name}")) if path not in paths]


def write_predictions(path: Path, predictions: Sequence[Predictions], *, views: Views = "none") -> list[Path]:
    """Write each member's predictions: to one file if there is one member, otherwise to one subfolder per member.

    Args:
        path: A file for one member if it ends in `.safetensors`; otherwise a folder.
        predictions: One entry per member.
        views: The views that the predictions were averaged over.

    Returns:
        The files.

    Raises:
        UsageError: The path is one file for several members or has another suffix; different predictions would be
            replaced; or predictions over several views would replace the predictions that training wrote.
        CheckpointError: There is already a file of a different kind.
        FmcliError: A file cannot be written.
    """
    files = _files_to_write(path, predictions)
    for file, member in zip(files, predictions, strict=True):
        _check_replaceable(file, member)
        if views != "none" and (file.parent / MODEL_FILE).exists():
            raise UsageError(
                f"averages over views cannot be written to {printable(file)}: "
                "next to a checkpoint, fmcli expects predictions without views",
                hint="choose another path",
            )
    for file, member in zip(files, predictions, strict=True):
        save_predictions(file, member)
    return files


def _files_to_write(path: Path, predictions: Sequence[Predictions]) -> list[Path]:
    if not path.suffix or path.is_dir():
        folders = folder_names([member.member for member in predictions])
        return [
            path / folder / predictions_file(member.split) for folder, member in zip(folders, predictions, strict=True)
        ]
    if path.suffix != ".safetensors":
        raise UsageError(
            f"predictions cannot be written to {printable(path)}: its name ends in {printable(path.suffix)}",
            hint="give a folder or, for one member, a file whose name ends in .safetensors",
        )
    if len(predictions) > 1:
        raise UsageError(
            f"{printable(path)} is one file, but there are {len(predictions)} members",
            hint="give a folder; each member gets a subfolder",
        )
    return [path]


def _check_replaceable(path: Path, predictions: Predictions) -> None:
    if not path.exists():
        return
    existing = load_predictions(path, header_only=True)
    same = (existing.recipe_digest, existing.split) == (predictions.recipe_digest, predictions.split)
    if not same or (not existing.recipe_digest and existing.member != predictions.member):
        raise UsageError(
            f"{printable(path)} has predictions of {_describe(existing)}, which would be replaced by "
            f"{_describe(predictions)}",
            hint="choose another path, or remove the file",
        )


def _describe(predictions: Predictions) -> str:
    recipe = f"recipe {predictions.recipe_digest[:12]}" if predictions.recipe_digest else "another tool"
    return f"{printable(predictions.member)} on {printable(predictions.split)} ({recipe})"
