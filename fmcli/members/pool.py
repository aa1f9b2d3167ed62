"""Open the members at the paths that the user gives, and choose how they vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fmcli.checkpoints.layout import make_names_unique
from fmcli.choices import RuleName, TieRule
from fmcli.ensemble import Combiner, choose_combiner
from fmcli.ensemble.file import FittedOn
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members.member import Member, Network, NoNetworkError, Opened, has_network
from fmcli.members.opening import open_path


@dataclass(frozen=True, slots=True)
class Pool:
    """Members that can vote together.

    Args:
        members: The members in order.
        names: A unique name for each member.
        groups: Each member's group in a two-level vote; empty if unknown.
        combiner: The rule of an ensemble; None if the members' recipes give the rule.
        fitted_on: The images that an ensemble was selected or fitted on, if known.
    """

    members: tuple[Member, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    combiner: Combiner | None = None
    fitted_on: FittedOn | None = None

    @property
    def networks(self) -> list[Network]:
        """The members that have networks."""
        return [member for member in self.members if has_network(member)]

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
        return any(member.is_external for member in self.members)

    def duplicates(self) -> dict[str, str]:
        """Return the names of members with the same weights as an earlier member, each with the earlier name."""
        first: dict[str, str] = {}
        found = {}
        for member, name in zip(self.members, self.names, strict=True):
            digest = member.weights_digest
            if digest and first.setdefault(digest, name) != name:
                found[name] = first[digest]
        return found

    def require_networks(self) -> list[Network]:
        """Return the members, which must all have networks.

        Raises:
            NoNetworkError: A member has stored predictions but no network.
        """
        for member, name in zip(self.members, self.names, strict=True):
            if not has_network(member):
                raise NoNetworkError(name)
        return self.networks

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
        if self.combiner is not None:
            rule = self.combiner.rule
            if vote in (None, rule.name) and weights is None and groups is None:
                return self.combiner if tie is None else replace(self.combiner, rule=replace(rule, tie=tie))
            vote, tie = vote or rule.name, tie or rule.tie
        own = [member.name.partition("/")[0] for member in self.members]  # a snapshot has the weight of its member
        recipes = [member.training.ensemble for member in self.networks]
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
    opened = [open_path(path, device) for path in paths]
    if must_match and len(paths) > 1:
        _refuse_ensembles(paths, opened)
    members = [member for one in opened for member in one.members]
    _check_distinct(members)
    if must_match:
        _check_match(members)
    groups = tuple(group for one in opened for group in one.groups)
    if len(opened) == 1 and (ensemble := opened[0].ensemble) is not None:
        names = tuple(entry.name for entry in ensemble.members)
        return Pool(tuple(members), names, groups, ensemble.combiner(), ensemble.fitted_on)
    names = tuple(make_names_unique([member.name for member in members], [member.file for member in members]))
    return Pool(tuple(members), names, groups)


def _refuse_ensembles(paths: Sequence[Path], opened: Sequence[Opened]) -> None:
    for path, one in zip(paths, opened, strict=True):
        if one.ensemble is not None:
            raise UsageError(
                f"{printable(path)} is an ensemble with its own rule and cannot be a member of another ensemble",
                hint="to compare several ensembles, use fmcli ensemble compare",
            )


def _check_distinct(members: Sequence[Member]) -> None:
    seen: set[Path] = set()
    for member in members:
        if member.file.resolve() in seen:
            raise CheckpointError(f"{printable(member.file)} is given twice", hint="give each member only once")
        seen.add(member.file.resolve())


def _check_match(members: Sequence[Member]) -> None:
    """Check that all networks have the same classes and input shape."""
    networks = [member for member in members if has_network(member)]
    for other in networks[1:]:
        first = networks[0]
        for label, expected, found in (
            ("classes", first.class_names, other.class_names),
            ("input (C, H, W)", first.training.input_shape, other.training.input_shape),
        ):
            if expected != found:
                raise CheckpointError(
                    f"{printable(other.path)} has the {label} {found}, but {printable(first.path)} has {expected}",
                    hint="combine members that were trained on the same classes and image size",
                )
