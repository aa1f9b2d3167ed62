"""Read and write packs. A pack is one file with the weights of an ensemble's members and its fitted voting rule.

A pack is a safetensors file. The tensors `model.N.*` are the weights of member N. The tensors `file.N.*` are the bytes
of other files in that member's folder. The metadata contains everything else, such as the rule and the run's recipe.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from fmcli.checkpoints.checkpoint import Checkpoint, build_checkpoint, parse_header
from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import (
    MODEL_FILE,
    RECIPE_FILE,
    find_checkpoints,
    is_snapshot_name,
    lost_snapshots,
    members_of_run,
    unfinished_members,
)
from fmcli.checkpoints.tensors import load_tensors, save_tensors, with_prefix, without_prefix
from fmcli.ensemble import Combiner
from fmcli.ensemble.file import (
    SUFFIX,
    EnsembleFile,
    FittedOn,
    MemberPath,
    describe_ensemble,
    first_problem,
    write_ensemble_file,
)
from fmcli.ensemble.predictions import predictions_file
from fmcli.errors import CheckpointError, Remedy, UsageError, printable
from fmcli.recipe.load import read_text
from fmcli.storage.atomic import folder_names, new_folder, write_atomic
from fmcli.storage.reading import FileFormat, has_format, read_bytes

FORMAT = FileFormat(
    "fmcli-pack-1", "a pack", hint="create one from a run with fmcli ensemble pack", remedies=[Remedy("pack", "RUN")]
)
ENSEMBLE_FILE = "ensemble.toml"
_OTHER_FILES = (HISTORY_FILE, predictions_file("validation"))
"""Files in a member's folder that are packed with its weights."""
MAX_OTHER_FILE_BYTES = 1 << 30


class _Contents(BaseModel, frozen=True, extra="forbid"):
    """Metadata of a pack.

    Args:
        ensemble: The rule and the members. Their paths are the folders to unpack into: `k3`, or `k3/snapshot-1`.
        headers: Metadata of each member's checkpoint.
        recipe: The run's recipe as TOML if the pack has exactly the members of one run; otherwise empty.
    """

    ensemble: EnsembleFile
    headers: tuple[dict[str, str], ...] = Field(min_length=1)
    recipe: str = ""


def write_pack(
    path: Path, sources: Sequence[MemberPath], combiner: Combiner, fitted_on: FittedOn | None = None
) -> None:
    """Write members and their rule to one file.

    Args:
        path: The file to write.
        sources: The members' checkpoint files in the rule's order, with unique names.
        combiner: The fitted voting rule.
        fitted_on: The images that the rule was fitted on.

    Raises:
        CheckpointError: A member's file is damaged.
        FmcliError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    headers = []
    for number, source in enumerate(sources):
        header, weights = load_tensors(source.path)
        headers.append(dict(sorted(header.items())))  # safetensors returns it in no fixed order
        tensors |= with_prefix(f"model.{number}", weights)
        for name in _OTHER_FILES:
            file = source.path.parent / name
            if file.is_file():
                content = read_bytes(file, MAX_OTHER_FILE_BYTES, CheckpointError)
                tensors[f"file.{number}.{name}"] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    folders = _member_folders([source.name for source in sources])
    inside = [replace(source, path=Path(folder)) for source, folder in zip(sources, folders, strict=True)]
    contents = _Contents(
        ensemble=describe_ensemble(inside, combiner, None, fitted_on),
        headers=tuple(headers),
        recipe=_complete_run_recipe(sources, folders),
    )
    save_tensors(path, tensors, {"format": FORMAT.name, "pack": contents.model_dump_json(exclude_none=True)})


def _member_folders(names: Sequence[str]) -> list[str]:
    """Return a relative folder for each member. The folder of a snapshot is in its member's folder."""
    parts = [_split_snapshot(name) for name in names]
    members = list(dict.fromkeys(member for member, _ in parts))
    folder_of = dict(zip(members, folder_names(members), strict=True))
    return ["/".join(part for part in (folder_of[member], snapshot) if part) for member, snapshot in parts]


def _split_snapshot(name: str) -> tuple[str, str]:
    """Split a name into member and snapshot: `k3/snapshot-1` into `k3` and `snapshot-1`."""
    member, _, last = name.rpartition("/")
    return (member, last) if member and is_snapshot_name(last) else (name, "")


def _complete_run_recipe(sources: Sequence[MemberPath], folders: Sequence[str]) -> str:
    """Return the recipe of a run if the sources are exactly the members of this run; otherwise an empty string."""
    files = [source.path.resolve() for source in sources]
    run = Path(*files[0].parts[: -1 - len(PurePosixPath(folders[0]).parts)])
    is_complete = members_of_run(run) and not unfinished_members(run) and not lost_snapshots(run)
    if is_complete and {run / folder / MODEL_FILE for folder in folders} == set(files) == set(find_checkpoints(run)):
        return read_text(run / RECIPE_FILE)
    return ""


def _read(path: Path) -> tuple[_Contents, dict[str, Tensor]]:
    if not path.is_file():
        problem, run = ("is a folder, not a pack", path) if path.is_dir() else ("does not exist", "RUN")
        raise CheckpointError(f"{printable(path)} {problem}", remedies=[Remedy("pack", run)])
    if path.suffix == SUFFIX:
        raise CheckpointError(
            f"{printable(path)} is an ensemble file, not a pack: its members are already separate files",
            hint=f"evaluate it with: fmcli ensemble evaluate {printable(path)}",
        )
    metadata, tensors = load_tensors(path, FORMAT)
    try:
        contents = _Contents.model_validate_json(metadata.get("pack", ""))
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from error
    if len(contents.headers) != len(contents.ensemble.members):
        raise _damaged(path, f"{len(contents.headers)} headers for {len(contents.ensemble.members)} members")
    return contents, tensors


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the metadata of {printable(path)} is damaged: {why}",
        hint="copy the file again, or pack the run again with fmcli ensemble pack",
    )


def is_pack(path: Path) -> bool:
    """Return whether a safetensors file is a pack.

    Raises:
        CheckpointError: The file is missing, or is not a safetensors file.
    """
    return has_format(path, FORMAT)


def read_pack(path: Path, *, device: torch.device) -> tuple[EnsembleFile, list[Checkpoint]]:
    """Read a pack and build its networks.

    Returns:
        The ensemble, and its members. The path of each member is the pack.

    Raises:
        CheckpointError: The file is missing, truncated, altered, or not a pack.
    """
    contents, tensors = _read(path)
    return contents.ensemble, [
        build_checkpoint(path, parse_header(path, header), without_prefix(f"model.{number}", tensors), device=device)
        for number, header in enumerate(contents.headers)
    ]


def unpack(path: Path, folder: Path) -> list[Path]:
    """Write the members of a pack to folders, byte for byte as they were packed, and the rule to an ensemble file.

    Args:
        path: The pack.
        folder: A new or empty folder. It gets all files or none.

    Returns:
        The members' folders.

    Raises:
        UsageError: The folder is not empty.
        CheckpointError: The pack is damaged, or would write files outside the folder.
        FmcliError: The folder cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{printable(folder)} is not an empty folder", remedies=["output"])
    contents, tensors = _read(path)
    inner = _safe_folders([entry.path for entry in contents.ensemble.members], path)
    files = [_other_files(tensors, number, path) for number in range(len(inner))]
    with new_folder(folder) as part:
        for number, (member, header) in enumerate(zip(inner, contents.headers, strict=True)):
            for name, content in files[number].items():
                write_atomic(part / member / name, content)
            save_tensors(part / member / MODEL_FILE, without_prefix(f"model.{number}", tensors), header)
        if contents.recipe:
            write_atomic(part / RECIPE_FILE, contents.recipe.encode())
        write_ensemble_file(part / ENSEMBLE_FILE, contents.ensemble, final_path=folder / ENSEMBLE_FILE)
    return [folder / member for member in inner]


def _other_files(tensors: Mapping[str, Tensor], number: int, path: Path) -> dict[str, bytes]:
    files = without_prefix(f"file.{number}", tensors)
    for name, content in files.items():
        if name not in _OTHER_FILES or content.dtype != torch.uint8:
            raise CheckpointError(f"{printable(path)} has an unexpected file: {printable(name)}")
    return {name: content.numpy().tobytes() for name, content in files.items()}


def _safe_folders(paths: Sequence[str], pack: Path) -> list[PurePosixPath]:
    """Return members' relative folders. Each is a plain name, or a plain name and the name of a snapshot.

    Raises:
        CheckpointError: A folder is neither, or two folders are equal on a file system that ignores case.
    """
    inner = [PurePosixPath(path) for path in paths]
    for folder in inner:
        is_plain = 1 <= len(folder.parts) <= 2 and all(map(_is_plain, folder.parts))
        if not is_plain or not all(map(is_snapshot_name, folder.parts[1:])):
            raise CheckpointError(f"{printable(pack)}: the member's folder {printable(folder)!r} is not a plain name")
    if len({str(folder).casefold() for folder in inner}) < len(inner):
        raise CheckpointError(f"{printable(pack)}: two members have the same folder")
    return inner


def _is_plain(name: str) -> bool:
    return name not in (ENSEMBLE_FILE, RECIPE_FILE) and re.fullmatch(r"\w[\w.-]*", name) is not None
