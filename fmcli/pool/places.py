"""What places stand for: members, trained or as predictions alone, and how they are combined."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fmcli.checkpoint import MODEL_FILE, RECIPE_FILE, Checkpoint, find_checkpoints, load_checkpoint, tell_apart
from fmcli.choices import SPLITS, TieRule, VotingRule
from fmcli.ensemble import Combiner, choose_combiner
from fmcli.ensemble_file import SUFFIX, read_ensemble_file
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.foreign import SUFFIXES
from fmcli.history import HISTORY_FILE
from fmcli.inference import check_alike
from fmcli.pack import PACK_FORMAT, read_pack
from fmcli.predictions import FORMAT as PREDICTIONS_FORMAT
from fmcli.predictions import read_predictions_header
from fmcli.recipe.networks import kernel_group
from fmcli.tensors import read_metadata

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
        learnt_on: The digest of the images that it was made on, where it says so.
    """

    members: tuple[Checkpoint | StoredMember, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    rule: Combiner | None = None
    learnt_on: str = ""

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Those that have a network."""
        return [member for member in self.members if isinstance(member, Checkpoint)]

    def subset(self, places: Sequence[int]) -> "Pool":
        """Return some of the members, by their places."""
        return Pool(
            tuple(self.members[place] for place in places),
            tuple(self.names[place] for place in places),
            tuple(self.groups[place] for place in places),
        )

    def grouped(self, groups: Sequence[str]) -> "Pool":
        """Return the pool with other groups, one a member."""
        return replace(self, groups=tuple(groups))

    def alone(self) -> "list[Pool]":
        """Return each member as a pool of its own."""
        return [self.subset([place]) for place in range(len(self.members))]

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
        if self.rule is not None and vote is None and weights is None and groups is None:
            return self.rule if tie is None else replace(self.rule, tie=tie)
        if self.rule is not None:
            vote, tie = vote or self.rule.vote, tie or self.rule.tie
        own = [member.header.member.name if isinstance(member, Checkpoint) else member.name for member in self.members]
        recipes = [member.header.ensemble for member in self.checkpoints]
        return choose_combiner(recipes, own, groups or self.groups, vote=vote, tie=tie, weights=weights)


def open_pool(places: Sequence[Path], *, device: torch.device, together: bool = True) -> Pool:
    """Find and load what places stand for.

    Args:
        places: Run folders, member folders, checkpoints, ensemble files, packs, files of predictions (fmcli's, or CSV
            and `.npy` of probabilities) and folders of those.
        device: Where networks are wanted.
        together: They are to answer as one, and must match.

    Raises:
        CheckpointError: One is missing or broken, or does not match.
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
        check_alike([member for member in members if isinstance(member, Checkpoint)])
    if len(opened) == 1 and opened[0].names:
        return opened[0]
    names = tell_apart([_own_name(member) for member in members], files)
    counts = Counter(names)  # files that lie side by side have one run
    names = [str(file) if counts[name] > 1 else name for name, file in zip(names, files, strict=True)]
    groups = tuple(group for one in opened for group in one.groups)
    return Pool(tuple(members), tuple(names), groups, opened[0].rule if len(opened) == 1 else None)


def _open_place(place: Path, device: torch.device) -> Pool:
    """Open one place; its members are named where an ensemble file or a pack does so."""
    if place.suffix == SUFFIX and place.is_file():
        content, paths = read_ensemble_file(place)
        found = [_open_member(path, entry.digest, device) for path, entry in zip(paths, content.members, strict=True)]
        names = tuple(entry.name for entry in content.members)
        groups = tuple(entry.group for entry in content.members)
        learnt_on = content.learnt_on.data_digest if content.learnt_on else ""
        return Pool(tuple(found), names, groups, content.combiner(), learnt_on)
    members: Sequence[Checkpoint | StoredMember] = []
    if place.is_file() and place.suffix in SUFFIXES:
        members = [_stored(place)]
    elif place.is_file():
        kind = read_metadata(place).get("format")
        if kind == PACK_FORMAT:
            pack = read_pack(place, device=device)
            groups = tuple(_group_of(member) for member in pack.members)
            return Pool(pack.members, pack.names, groups, pack.rule, pack.learnt_on)
        members = [_stored(place)] if kind == PREDICTIONS_FORMAT else []
    elif place.is_dir():
        members = _stored_members(place)
    if not members:
        members = [load_checkpoint(path, device=device) for path in find_checkpoints([place])]
    return Pool(tuple(members), (), tuple(_group_of(member) for member in members))


def _open_member(place: Path, digest: str, device: torch.device) -> Checkpoint | StoredMember:
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
    if digest and isinstance(found[0], Checkpoint) and read_metadata(found[0].path).get("digest") != digest:
        raise CheckpointError(
            f"{printable(place)} was trained again since the ensemble was made: its weights are others",
            hint="make the ensemble again: fmcli ensemble select, or fit",
        )
    return found[0]


def _stored_members(folder: Path) -> list[StoredMember]:
    """Return the members whose predictions a folder holds: its own by split, one folder each, or one file each."""
    if any(any(folder.glob(pattern)) for name in _OF_TRAINING for pattern in (name, f"*/{name}")):
        return []  # a run or a member, perhaps not trained to its end
    if own := _files_by_split(folder):
        return [StoredMember(folder.resolve().name, folder, own)]
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    of_folders = [StoredMember(path.name, path, files) for path in folders if (files := _files_by_split(path))]
    if of_folders:
        return of_folders
    alone = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [_stored(path) for path in alone if path.suffix in SUFFIXES or _holds_predictions(path)]


def _holds_predictions(path: Path) -> bool:
    return path.suffix == ".safetensors" and read_metadata(path).get("format") == PREDICTIONS_FORMAT


def _files_by_split(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that are named after splits, fmcli's own before other tools'."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        candidates = [folder / f"{split}{ending}" for ending in (".safetensors", *SUFFIXES)]
        there = [path for path in candidates if path.is_file()]
        if there:
            found[split] = there[0]
    return found


def _stored(path: Path) -> StoredMember:
    """Return the member of one file of predictions, with its other splits where files beside it are named so."""
    if path.stem in SPLITS:
        files = _files_by_split(path.parent) | {path.stem: path}
        return StoredMember(path.parent.resolve().name, path.parent, files)
    split = read_predictions_header(path).split if path.suffix not in SUFFIXES else ANY_SPLIT
    return StoredMember(path.stem, path, {split: path})


def _files_of(place: Path, opened: Pool) -> list[Path]:
    """Return a file for each member, by which it is told from others; in a pack, where it would lie unpacked."""
    if opened.rule is not None and place.suffix != SUFFIX:
        return [place / name / MODEL_FILE for name in opened.names]
    return [
        member.path if isinstance(member, Checkpoint) else next(iter(member.files.values()))
        for member in opened.members
    ]


def _check_once(files: Sequence[Path]) -> None:
    seen = set()
    for file in files:
        if file.resolve() in seen:
            raise CheckpointError(f"{printable(file)} is named twice", hint="each member has one vote: name it once")
        seen.add(file.resolve())


def _own_name(member: Checkpoint | StoredMember) -> str:
    return member.header.name if isinstance(member, Checkpoint) else member.name


def _group_of(member: Checkpoint | StoredMember) -> str:
    if isinstance(member, Checkpoint):
        return kernel_group(member.header.member.model)
    path = next(iter(member.files.values()))
    return "" if path.suffix in SUFFIXES else read_predictions_header(path).group
