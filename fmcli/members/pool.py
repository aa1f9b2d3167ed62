"""Open the members that paths name, and choose how they vote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fmcli.checkpoints.layout import MODEL_FILE, check_distinct, find_checkpoints, make_names_unique
from fmcli.choices import TieRule, VotingRule
from fmcli.ensemble import Combiner, choose_combiner
from fmcli.ensemble.file import SUFFIX, FittedOn, read_ensemble_file
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members.stored import StoredMember, find_stored_members
from fmcli.recipe.families import kernel_group
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
        rule: The rule of the ensemble file or pack; None if the members' recipes give the rule.
        fitted_on: The images that the ensemble was fitted on, if its file names them.
    """

    members: tuple[Member, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    rule: Combiner | None = None
    fitted_on: FittedOn | None = None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The members that have a network."""
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
        """Whether another tool predicted for a member; its predictions can lack the true classes."""
        return any(isinstance(member, StoredMember) and member.is_external for member in self.members)

    def duplicates(self) -> dict[str, str]:
        """Return the members that have the same weights as an earlier member, and that member's name."""
        first: dict[str, str] = {}
        found = {}
        for member, name in zip(self.members, self.names, strict=True):
            if not isinstance(member, StoredMember):
                digest = member.weights_digest
                if first.setdefault(digest, name) != name:
                    found[name] = first[digest]
        return found

    def require_networks(self) -> list[Checkpoint]:
        """Return the members.

        Raises:
            UsageError: A member has stored predictions but no network.
        """
        for member, name in zip(self.members, self.names, strict=True):
            if isinstance(member, StoredMember):
                raise UsageError(
                    f"{printable(name)} has stored predictions but no network, which is needed here",
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
        """Return the requested rule; by default that of the ensemble, else that of the members' recipes.

        Raises:
            UsageError: The rule does not fit the members; see `ensemble.choose_combiner`.
        """
        if groups is not None and len(groups) != len(self.members):
            raise UsageError(
                f"{len(self.members)} members need {len(self.members)} groups, one per member; got {len(groups)}",
                remedies=["groups"],
            )
        if self.rule is not None and vote in (None, self.rule.vote) and weights is None and groups is None:
            return self.rule if tie is None else replace(self.rule, tie=tie)
        if self.rule is not None:
            vote, tie = vote or self.rule.vote, tie or self.rule.tie
        own = [
            member.name if isinstance(member, StoredMember) else member.header.member.name for member in self.members
        ]
        recipes = [member.header.ensemble for member in self.checkpoints]
        return choose_combiner(recipes, own, groups or self.groups, vote=vote, tie=tie, weights=weights)


def open_pool(paths: Sequence[Path], *, device: str = "auto", must_match: bool = True) -> Pool:
    """Find and load the members that paths name.

    Args:
        paths: Run folders, members' folders, checkpoints, ensemble files, packs, predictions files (of fmcli, or CSV
            and `.npy` files of probabilities), and folders of predictions files.
        device: Device for the networks; see `resolve_device`.
        must_match: Whether the members will vote together: they must have the same classes and input shape, and an
            ensemble must be the only path.

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
                hint="fmcli ensemble compare compares several ensembles",
            )
    members = [member for pool in opened for member in pool.members]
    files = [file for path, pool in zip(paths, opened, strict=True) for file in _distinct_files(path, pool)]
    check_distinct(files)
    if must_match:
        _check_match([member for member in members if not isinstance(member, StoredMember)])
    if len(opened) == 1 and opened[0].names:
        return opened[0]
    own_names = [member.name if isinstance(member, StoredMember) else member.header.name for member in members]
    names = make_names_unique(own_names, files)
    groups = tuple(group for pool in opened for group in pool.groups)
    return Pool(tuple(members), tuple(names), groups, opened[0].rule if len(opened) == 1 else None)


def _open_path(path: Path, device: str) -> Pool:
    """Open one path. The pool has names only if an ensemble file or a pack gives them."""
    if path.suffix == SUFFIX and path.is_file():
        return _open_ensemble(path, device)
    stored = find_stored_members(path)
    return _unnamed_pool(stored) if stored else _open_networks(path, device)


def _unnamed_pool(members: Iterable[Member]) -> Pool:
    members = tuple(members)
    return Pool(members, (), tuple(map(_group_of, members)))


def _open_ensemble(path: Path, device: str) -> Pool:
    content, paths = read_ensemble_file(path)
    names = tuple(entry.name for entry in content.members)
    for name, member in zip(names, paths, strict=True):
        if not member.exists():
            raise CheckpointError(
                f"{printable(path)} names the member {printable(name)}, but there is nothing at {printable(member)}",
                hint="restore it, or create the ensemble again with fmcli ensemble fit or select",
            )
    members = [_open_member(member, entry.digest, device) for member, entry in zip(paths, content.members, strict=True)]
    groups = tuple(entry.group for entry in content.members)
    return Pool(tuple(members), names, groups, content.combiner(), content.fitted_on)


def _open_networks(path: Path, device: str) -> Pool:
    from fmcli.checkpoints.checkpoint import load_checkpoint
    from fmcli.checkpoints.pack import PACK_FORMAT, read_pack
    from fmcli.hardware.device import resolve_device

    resolved = resolve_device(device)
    if path.is_file() and read_metadata(path).get("format") == PACK_FORMAT:
        pack = read_pack(path, device=resolved)
        return Pool(pack.members, pack.names, tuple(map(_group_of, pack.members)), pack.rule, pack.fitted_on)
    return _unnamed_pool(load_checkpoint(file, device=resolved) for file in find_checkpoints([path]))


def _open_member(path: Path, digest: str, device: str) -> Member:
    """Open a member that an ensemble file names.

    Raises:
        CheckpointError: The path is an ensemble or has several members, or the weights have changed.
    """
    if (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    opened = _open_path(path, device) if path.suffix != SUFFIX else None  # an ensemble file could name itself
    if opened is None or opened.rule is not None:
        raise CheckpointError(f"{printable(path)} is an ensemble and cannot be a member of another ensemble")
    if len(opened.members) != 1:
        raise CheckpointError(
            f"{printable(path)} has {len(opened.members)} members, but an ensemble file must name each one separately"
        )
    [member] = opened.members
    if digest and not isinstance(member, StoredMember) and read_metadata(member.path).get("digest") != digest:
        raise CheckpointError(
            f"{printable(path)} was trained again after the ensemble was created, so its weights have changed",
            hint="create the ensemble again with fmcli ensemble fit or select",
        )
    return member


def _distinct_files(path: Path, opened: Pool) -> list[Path]:
    """Return a distinct file for each member; for a pack, the paths that unpacking would give."""
    if opened.rule is not None and path.suffix != SUFFIX:
        return [path / name / MODEL_FILE for name in opened.names]
    return [
        next(iter(member.files.values())) if isinstance(member, StoredMember) else member.path
        for member in opened.members
    ]


def _check_match(members: Sequence[Checkpoint]) -> None:
    for other in members[1:]:
        first = members[0]
        for label, expected, found in (
            ("classes", first.header.class_names, other.header.class_names),
            ("input (C, H, W)", first.header.input_shape, other.header.input_shape),
        ):
            if expected != found:
                raise CheckpointError(
                    f"{printable(other.path)} has the {label} {found}; {printable(first.path)} has {expected}",
                    hint="combine members that were trained on the same classes and image size",
                )


def _group_of(member: Member) -> str:
    return member.group if isinstance(member, StoredMember) else kernel_group(member.header.member.model)
