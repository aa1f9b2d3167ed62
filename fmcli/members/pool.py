"""Open the members at the paths that the user gives, and choose how they vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fmcli.checkpoints.layout import MODEL_FILE, find_checkpoints, make_names_unique
from fmcli.choices import RuleName, TieRule
from fmcli.ensemble import Combiner, choose_combiner
from fmcli.ensemble.file import SUFFIX, EnsembleFile, FittedOn, read_ensemble_file
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members.stored import StoredMember, find_stored_members
from fmcli.storage.reading import read_metadata

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import Checkpoint  # imports torch, which takes seconds

Member: TypeAlias = "Checkpoint | StoredMember"


@dataclass(frozen=True, slots=True)
class Pool:
    """Members that can vote together.

    Args:
        members: The members in order.
        names: A unique name for each member.
        groups: Each member's group in a two-level vote; empty if unknown.
        rule: The rule of an ensemble; None if the members' recipes give the rule.
        fitted_on: The images that an ensemble was selected or fitted on, if known.
    """

    members: tuple[Member, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    rule: Combiner | None = None
    fitted_on: FittedOn | None = None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The members that have networks."""
        return [member for member in self.members if not isinstance(member, StoredMember)]

    def subset(self, indices: Sequence[int]) -> Pool:
        """Return a pool of some members, without a rule."""
        return Pool(
            tuple(self.members[index] for index in indices),
            tuple(self.names[index] for index in indices),
            tuple(self.groups[index] for index in indices),
        )

    @property
    def has_external(self) -> bool:
        """Whether another tool wrote the predictions of a member. They may come without the true classes."""
        return any(isinstance(member, StoredMember) and member.is_external for member in self.members)

    def duplicates(self) -> dict[str, str]:
        """Return the names of members with the same weights as an earlier member, each with the earlier name."""
        first: dict[str, str] = {}
        found = {}
        for member, name in zip(self.members, self.names, strict=True):
            if not isinstance(member, StoredMember):
                digest = member.weights_digest
                if first.setdefault(digest, name) != name:
                    found[name] = first[digest]
        return found

    def require_networks(self) -> list[Checkpoint]:
        """Return the members, which must all have networks.

        Raises:
            UsageError: A member has stored predictions but no network.
        """
        for member, name in zip(self.members, self.names, strict=True):
            if isinstance(member, StoredMember):
                raise UsageError(
                    f"{printable(name)} has stored predictions but no network; this command needs networks",
                    hint="give checkpoints, a run, or an ensemble of them",
                )
        return self.checkpoints

    def choose_rule(
        self,
        *,
        vote: RuleName | None = None,
        tie: TieRule | None = None,
        weights: Sequence[float] | None = None,
        groups: Sequence[str] | None = None,
    ) -> Combiner:
        """Return the requested rule. By default, return the rule of the ensemble or of the members' recipes.

        Raises:
            UsageError: The rule does not fit the members; see `ensemble.choose_combiner`.
        """
        if groups is not None and len(groups) != len(self.members):
            raise UsageError(
                f"{len(self.members)} members need {len(self.members)} groups, one per member; got {len(groups)}",
                remedies=["groups"],
            )
        if self.rule is not None and vote in (None, self.rule.rule.name) and weights is None and groups is None:
            return self.rule if tie is None else replace(self.rule, rule=replace(self.rule.rule, tie=tie))
        if self.rule is not None:
            vote, tie = vote or self.rule.rule.name, tie or self.rule.rule.tie
        own = [member.name.partition("/")[0] for member in self.members]  # a snapshot has the weight of its member
        recipes = [member.header.ensemble for member in self.checkpoints]
        return choose_combiner(recipes, own, groups or self.groups, vote=vote, tie=tie, weights=weights)


def open_pool(paths: Sequence[Path], *, device: str = "auto", must_match: bool = True) -> Pool:
    """Find and load members.

    Args:
        paths: Run folders, members' folders, checkpoints, ensemble files, packs, predictions files (from fmcli, or CSV
            and `.npy` files with probabilities), and folders of predictions files.
        device: Device for the networks; see `resolve_device`.
        must_match: Whether the members will vote together. They must then have the same classes and input shape, and
            an ensemble must be the only path.

    Raises:
        CheckpointError: A member is missing or damaged, or members do not match.
        DeviceError: The device does not exist.
        UsageError: `must_match` is set, and an ensemble is one of several paths.
    """
    opened = [_open_path(path, device) for path in paths]
    for path, pool in zip(paths, opened, strict=True):
        if pool.rule is not None and must_match and len(paths) > 1:
            raise UsageError(
                f"{printable(path)} is an ensemble with its own rule and cannot be a member of another ensemble",
                hint="to compare several ensembles, use fmcli ensemble compare",
            )
    members = tuple(member for pool in opened for member in pool.members)
    files = [file for path, pool in zip(paths, opened, strict=True) for file in _distinct_files(path, pool)]
    _check_distinct(files)
    if len(opened) == 1 and opened[0].rule is not None:
        pool = opened[0]
    else:
        names = make_names_unique([member.name for member in members], files)
        pool = Pool(members, tuple(names), tuple(group for pool in opened for group in pool.groups))
    if must_match:
        _check_match(pool.checkpoints)
    return pool


def _open_path(path: Path, device: str) -> Pool:
    """Open one path. The names of the members are not unique yet, unless an ensemble gives them."""
    if path.suffix == SUFFIX and path.is_file():
        return _open_ensemble(path, device)
    stored = find_stored_members(path)
    return _plain_pool(stored) if stored else _open_networks(path, device)


def _plain_pool(members: Sequence[Member]) -> Pool:
    return Pool(tuple(members), tuple(member.name for member in members), tuple(member.group for member in members))


def _ensemble_pool(ensemble: EnsembleFile, members: Sequence[Member]) -> Pool:
    names = tuple(entry.name for entry in ensemble.members)
    groups = tuple(entry.group for entry in ensemble.members)
    return Pool(tuple(members), names, groups, ensemble.combiner(), ensemble.fitted_on)


def _open_ensemble(path: Path, device: str) -> Pool:
    ensemble, paths = read_ensemble_file(path)
    for entry, member in zip(ensemble.members, paths, strict=True):
        if not member.exists():
            raise CheckpointError(
                f"{printable(path)} has the member {printable(entry.name)}, but {printable(member)} does not exist",
                hint="restore it, or create the ensemble again with fmcli ensemble fit or select",
            )
    return _ensemble_pool(
        ensemble,
        [_open_member(member, entry.digest, device) for member, entry in zip(paths, ensemble.members, strict=True)],
    )


def _open_networks(path: Path, device: str) -> Pool:
    from fmcli.checkpoints.checkpoint import load_checkpoint
    from fmcli.checkpoints.pack import is_pack, read_pack
    from fmcli.hardware.device import resolve_device

    resolved = resolve_device(device)
    if path.is_file() and is_pack(path):
        return _ensemble_pool(*read_pack(path, device=resolved))
    return _plain_pool([load_checkpoint(file, device=resolved) for file in find_checkpoints(path)])


def _open_member(path: Path, digest: str, device: str) -> Member:
    """Open a member of an ensemble file.

    Raises:
        CheckpointError: The path is an ensemble or has several members, or the weights have changed.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    opened = _open_path(path, device) if path.suffix != SUFFIX else None  # an ensemble file could list itself
    if opened is None or opened.rule is not None:
        raise CheckpointError(f"{printable(path)} is an ensemble and cannot be a member of another ensemble")
    if len(opened.members) != 1:
        raise CheckpointError(
            f"{printable(path)} has {len(opened.members)} members; an ensemble file must list each of them separately"
        )
    [member] = opened.members
    if digest and not isinstance(member, StoredMember) and read_metadata(member.path).get("digest") != digest:
        raise CheckpointError(
            f"the weights of {printable(path)} have changed since the ensemble was created",
            hint="create the ensemble again with fmcli ensemble fit or select",
        )
    return member


def _distinct_files(path: Path, opened: Pool) -> list[Path]:
    """Return a path that identifies each member: its file or, in a pack, the file that unpacking would write."""
    if opened.rule is not None and path.suffix != SUFFIX:
        return [path / name / MODEL_FILE for name in opened.names]
    return [member.file if isinstance(member, StoredMember) else member.path for member in opened.members]


def _check_distinct(files: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise CheckpointError(f"{printable(file)} is given twice", hint="give each member only once")
        seen.add(file.resolve())


def _check_match(members: Sequence[Checkpoint]) -> None:
    for other in members[1:]:
        first = members[0]
        for label, expected, found in (
            ("classes", first.header.class_names, other.header.class_names),
            ("input (C, H, W)", first.header.input_shape, other.header.input_shape),
        ):
            if expected != found:
                raise CheckpointError(
                    f"{printable(other.path)} has the {label} {found}, but {printable(first.path)} has {expected}",
                    hint="combine members that were trained on the same classes and image size",
                )
