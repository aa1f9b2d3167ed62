"""What places stand for: members, trained or as predictions alone, and how they are combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.checkpoints.history import HISTORY_FILE
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE, find_checkpoints, make_names_unique
from fmcli.choices import SPLITS, TieRule, VotingRule
from fmcli.ensemble import Combiner, choose_combiner
from fmcli.ensemble.external import is_external, is_labels_file
from fmcli.ensemble.file import SUFFIX, FittedOn, read_ensemble_file
from fmcli.ensemble.predictions import FORMAT as PREDICTIONS_FORMAT
from fmcli.ensemble.predictions import read_predictions_header
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.recipe.families import kernel_group
from fmcli.storage.reading import read_metadata

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import (
        Checkpoint,  # torch takes seconds to import, and predictions alone do without it
    )

_OF_TRAINING = (MODEL_FILE, HISTORY_FILE, RECIPE_FILE)
ANY_SPLIT = ""
"""Names the file of a stored member that does not say which split it is of."""


@dataclass(frozen=True, slots=True)
class StoredMember:
    """A member of which there are predictions, and no network.

    Args:
        name: What it is called.
        place: Its file or folder.
        files: Its predictions by split; under the empty name, those of whatever split is asked for.
    """

    name: str
    place: Path
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Pool:
    """Members that may answer together.

    Args:
        members: In order.
        names: A name for each that no other has.
        groups: What each votes within in a two-level vote; empty where that is not known.
        rule: How an ensemble file or a pack says to combine them; None where their recipes say.
        fitted_on: The images that the ensemble was made on, where it says so.
    """

    members: tuple[Checkpoint | StoredMember, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    rule: Combiner | None = None
    fitted_on: FittedOn | None = None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Those that have a network."""
        return [member for member in self.members if not isinstance(member, StoredMember)]

    def subset(self, places: Sequence[int]) -> Pool:
        """Return some of the members, by their places."""
        return Pool(
            tuple(self.members[place] for place in places),
            tuple(self.names[place] for place in places),
            tuple(self.groups[place] for place in places),
        )

    def grouped(self, groups: Sequence[str]) -> Pool:
        """Return the pool with other groups, one a member."""
        return replace(self, groups=tuple(groups))

    @property
    def needs_labels(self) -> bool:
        """Whether a member is of another tool, whose predictions may come without the true classes."""
        stored = (member for member in self.members if isinstance(member, StoredMember))
        return any(is_external(path) for member in stored for path in member.files.values())

    def alone(self) -> list[Pool]:
        """Return each member as a pool of its own."""
        return [self.subset([place]) for place in range(len(self.members))]

    def duplicates(self) -> dict[str, str]:
        """Return the members whose weights are those of one before, and that one's name."""
        first: dict[str, str] = {}
        found = {}
        for member, name in zip(self.members, self.names, strict=True):
            if not isinstance(member, StoredMember):
                digest = member.weights_digest
                if first.setdefault(digest, name) != name:
                    found[name] = first[digest]
        return found

    def networks(self) -> list[Checkpoint]:
        """Return the members, all of which must have a network.

        Raises:
            UsageError: One is there as predictions alone.
        """
        for member, name in zip(self.members, self.names, strict=True):
            if isinstance(member, StoredMember):
                raise UsageError(
                    f"of {printable(name)} there are predictions alone, and this needs its network",
                    hint="give checkpoints, a run, or an ensemble of them",
                )
        return self.checkpoints

    def choose_rule(
        self,
        *,
        vote: VotingRule | None = None,
        tie: TieRule | None = None,
        weights: Sequence[float] | None = None,
        groups: Sequence[str] | None = None,
    ) -> Combiner:
        """Return how to combine the members: as asked for, as their ensemble says, or as their recipes agree.

        Raises:
            UsageError: That does not fit them; see `ensemble.choose_combiner`.
        """
        if groups is not None and len(groups) != len(self.members):
            raise UsageError(f"there must be a group for each of {len(self.members)} members; got {len(groups)}")
        if self.rule is not None and vote in (None, self.rule.vote) and weights is None and groups is None:
            return self.rule if tie is None else replace(self.rule, tie=tie)
        if self.rule is not None:
            vote, tie = vote or self.rule.vote, tie or self.rule.tie
        own = [one.name if isinstance(one, StoredMember) else one.header.member.name for one in self.members]
        recipes = [member.header.ensemble for member in self.checkpoints]
        return choose_combiner(recipes, own, groups or self.groups, vote=vote, tie=tie, weights=weights)


def open_pool(places: Sequence[Path], *, device: str = "auto", together: bool = True) -> Pool:
    """Find and load what places stand for.

    Args:
        places: Run folders, member folders, checkpoints, ensemble files, packs, files of predictions (fmcli's, or CSV
            and `.npy` of probabilities) and folders of those.
        device: Where networks are wanted, as `resolve_device` takes it.
        together: They are to answer as one, and must match.

    Raises:
        CheckpointError: One is missing or broken, or does not match.
        DeviceError: The device is not there.
        UsageError: An ensemble stands beside others that are to answer as one with it.
    """
    opened = [_open_place(place, device) for place in places]
    for place, one in zip(places, opened, strict=True):
        if one.rule is not None and together and len(places) > 1:
            raise UsageError(
                f"{printable(place)} is an ensemble with a rule of its own, and cannot be a member of another",
                hint="fmcli ensemble compare sets several side by side",
            )
    members = [member for one in opened for member in one.members]
    files = [file for place, one in zip(places, opened, strict=True) for file in _files_of(place, one)]
    _check_once(files)
    if together:
        _check_alike([member for member in members if not isinstance(member, StoredMember)])
    if len(opened) == 1 and opened[0].names:
        return opened[0]
    names = make_names_unique([_own_name(member) for member in members], files)
    groups = tuple(group for one in opened for group in one.groups)
    return Pool(tuple(members), tuple(names), groups, opened[0].rule if len(opened) == 1 else None)


def _open_place(place: Path, device: str) -> Pool:
    """Open one place; its members are named where an ensemble file or a pack does so."""
    if place.suffix == SUFFIX and place.is_file():
        content, paths = read_ensemble_file(place)
        _check_there(place, dict(zip((entry.name for entry in content.members), paths, strict=True)))
        found = [_open_member(path, entry.digest, device) for path, entry in zip(paths, content.members, strict=True)]
        names = tuple(entry.name for entry in content.members)
        groups = tuple(entry.group for entry in content.members)
        return Pool(tuple(found), names, groups, content.combiner(), content.fitted_on)
    stored: list[StoredMember] = []
    if place.is_dir():
        stored = _stored_members(place)
    elif place.is_file() and (is_external(place) or _holds_predictions(place)):
        stored = [_stored(place)]
    if stored:
        return Pool(tuple(stored), (), tuple(_group_of(member) for member in stored))
    return _open_networks(place, device)


def _open_networks(place: Path, device: str) -> Pool:
    from fmcli.checkpoints.checkpoint import load_checkpoint
    from fmcli.checkpoints.pack import PACK_FORMAT, read_pack
    from fmcli.hardware.device import resolve_device

    where = resolve_device(device)
    if place.is_file() and read_metadata(place).get("format") == PACK_FORMAT:
        pack = read_pack(place, device=where)
        groups = tuple(_group_of(member) for member in pack.members)
        return Pool(pack.members, pack.names, groups, pack.rule, pack.fitted_on)
    members = [load_checkpoint(path, device=where) for path in find_checkpoints([place])]
    return Pool(tuple(members), (), tuple(_group_of(member) for member in members))


def _check_there(ensemble: Path, members: Mapping[str, Path]) -> None:
    for name, path in members.items():
        if not path.exists():
            raise CheckpointError(
                f"{printable(ensemble)} names the member {printable(name)}, and there is nothing at {printable(path)}",
                hint="bring it back; or make the ensemble again: fmcli ensemble fit, or select",
            )


def _open_member(place: Path, digest: str, device: str) -> Checkpoint | StoredMember:
    """Open one member that an ensemble file names.

    Raises:
        CheckpointError: It is no longer there, or was trained again since.
    """
    if (place / MODEL_FILE).is_file():
        place = place / MODEL_FILE
    opened = _open_place(place, device) if place.suffix != SUFFIX else None  # which may name itself
    if opened is None or opened.rule is not None:
        raise CheckpointError(f"{printable(place)} is an ensemble, and cannot be a member of another")
    found = opened.members
    if len(found) != 1:
        raise CheckpointError(f"{printable(place)} is {len(found)} members, and the ensemble file means one")
    if digest and not isinstance(found[0], StoredMember) and read_metadata(found[0].path).get("digest") != digest:
        raise CheckpointError(
            f"{printable(place)} was trained again since the ensemble was made: its weights are others",
            hint="make the ensemble again: fmcli ensemble select, or fit",
        )
    return found[0]


def _stored_members(folder: Path) -> list[StoredMember]:
    """Return the members whose predictions a folder holds: its own by split; or those of its folders and files.

    What is neither a folder nor ends as predictions do is left alone, as hidden files and true classes are.

    Raises:
        CheckpointError: Some files are predictions, and others, which end so too, are not or count for nobody.
    """
    if any(any(folder.glob(pattern)) for name in _OF_TRAINING for pattern in (name, f"*/{name}")):
        return []  # a run or a member, perhaps not trained to its end
    own = _files_by_split(folder)
    folders = {path: _files_by_split(path) for path in sorted(folder.iterdir()) if _may_hold_predictions(path)}
    alone = [path for path in _files_of_predictions(folder) if path not in own.values()]
    if own:
        _refuse([*(path for path, files in folders.items() if files), *alone], f"{printable(folder)} is one member")
        return [StoredMember(folder.resolve().name, folder, own)]
    found = {path: StoredMember(path.name, path, files) for path, files in folders.items() if files}
    found |= {path: _stored(path) for path in alone if is_external(path) or _holds_predictions(path)}
    if found:
        _refuse([path for path in (*folders, *alone) if path not in found], "it holds no predictions of a split")
    return [found[path] for path in sorted(found)]


def _refuse(paths: Sequence[Path], why: str) -> None:
    if paths:
        raise CheckpointError(
            f"{printable(paths[0])} would not vote: {why}",
            hint="MEMBER/test.safetensors, MEMBER.safetensors, or .npy or .csv; name members one by one, or move it",
        )


def _may_hold_predictions(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and bool(_files_of_predictions(path))


def _files_of_predictions(folder: Path) -> list[Path]:
    """Return the files of a folder that end as predictions do, in order."""
    return sorted(
        path
        for path in folder.iterdir()
        if (is_external(path) or path.suffix == ".safetensors")
        and path.is_file()
        and not path.name.startswith(".")
        and not is_labels_file(path)
    )


def _holds_predictions(path: Path) -> bool:
    return read_metadata(path).get("format") == PREDICTIONS_FORMAT


def _files_by_split(folder: Path, chosen: Path | None = None) -> dict[str, Path]:
    """Return the files of a folder that are named after splits.

    Raises:
        CheckpointError: Two are named after one split, and neither is the chosen one.
    """
    found: dict[str, Path] = {} if chosen is None else {chosen.stem: chosen}
    for path in _files_of_predictions(folder):
        if path.stem not in SPLITS or (chosen and path.stem == chosen.stem):
            continue
        if path.stem in found:
            raise CheckpointError(
                f"{printable(found[path.stem])} and {printable(path)} are two predictions of one member on one split",
                hint="name the one that is meant, or move the other",
            )
        found[path.stem] = path
    return {split: found[split] for split in SPLITS if split in found}


def _stored(path: Path) -> StoredMember:
    """Return the member of one file of predictions, with its other splits where files beside it are named so."""
    if path.stem in SPLITS:
        return StoredMember(path.parent.resolve().name, path, _files_by_split(path.parent, path))
    split = ANY_SPLIT if is_external(path) else read_predictions_header(path).split
    return StoredMember(path.stem, path, {split: path})


def _files_of(place: Path, opened: Pool) -> list[Path]:
    """Return a file for each member, by which it is told from others; in a pack, where it would lie unpacked."""
    if opened.rule is not None and place.suffix != SUFFIX:
        return [place / name / MODEL_FILE for name in opened.names]
    return [
        next(iter(member.files.values())) if isinstance(member, StoredMember) else member.path
        for member in opened.members
    ]


def _check_alike(members: Sequence[Checkpoint]) -> None:
    """Refuse networks that cannot answer together, by name."""
    for other in members[1:]:
        first = members[0]
        for what, mine, theirs in (
            ("classes", first.header.class_names, other.header.class_names),
            ("input (C, H, W)", first.header.input_shape, other.header.input_shape),
        ):
            if mine != theirs:
                raise CheckpointError(
                    f"{printable(other.path)} has the {what} {theirs}; {printable(first.path)} has {mine}",
                    hint="combine members that were trained on the same classes and image size",
                )


def _check_once(files: Sequence[Path]) -> None:
    seen = set()
    for file in files:
        if file.resolve() in seen:
            raise CheckpointError(f"{printable(file)} is named twice", hint="each member has one vote: name it once")
        seen.add(file.resolve())


def _own_name(member: Checkpoint | StoredMember) -> str:
    return member.name if isinstance(member, StoredMember) else member.header.name


def _group_of(member: Checkpoint | StoredMember) -> str:
    if not isinstance(member, StoredMember):
        return kernel_group(member.header.member.model)
    path = next(iter(member.files.values()))
    return "" if is_external(path) else read_predictions_header(path).group
