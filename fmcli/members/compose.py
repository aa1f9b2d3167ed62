"""Create ensembles, by fitting a rule or selecting members on validation images, and write them to disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import SelectionMethod, VotingRule
from fmcli.ensemble import Combiner, cross_fit, fit_combiner
from fmcli.ensemble.file import FittedOn, MemberPath, describe_ensemble, write_ensemble_file
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.selection import Selection, select_members
from fmcli.errors import Remedy, UsageError, printable
from fmcli.members.pool import Member, Pool
from fmcli.members.predict import PredictOptions
from fmcli.members.stored import StoredMember
from fmcli.members.validation import predict_for_fitting
from fmcli.storage.reading import read_metadata

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import Checkpoint  # imports torch, which takes seconds


@dataclass(frozen=True, slots=True)
class ComposedEnsemble:
    """Members with a fitted rule.

    Args:
        pool: The members.
        rule: The fitted rule.
        fitted_on: The images that the rule was fitted on; None if nothing was fitted.
        selection: Result of selecting the members, if they were selected.
    """

    pool: Pool
    rule: Combiner
    fitted_on: FittedOn | None
    selection: Selection | None = None


def fit_ensemble(pool: Pool, rule: Combiner, **options: Unpack[PredictOptions]) -> ComposedEnsemble:
    """Fit a rule and its temperature on validation images.

    Args:
        pool: The members.
        rule: The rule; weights that it has are kept.
        **options: Options of `predict_pool`.

    Raises:
        UsageError: The rule needs fitting, and the members have no validation images in common.
    """
    found = predict_for_fitting(pool, rule, **options)
    if found is None:
        return ComposedEnsemble(pool, rule, pool.fitted_on if rule.is_fitted else None)
    logits, y_true = stack_logits(found), found[0].labels
    vote = cross_fit(rule, logits, y_true)(logits) if rule.needs_fit else rule(logits)
    accuracy = float((vote.labels == y_true).mean())
    return ComposedEnsemble(pool, fit_combiner(rule, logits, y_true), _fitted_on(found, accuracy))


def _fitted_on(predictions: Sequence[Predictions], accuracy: float) -> FittedOn:
    first = predictions[0]
    return FittedOn(
        split="validation", images=len(first.labels), data_digest=first.data_digest, accuracy=round(accuracy, 6)
    )


def select_ensemble(
    pool: Pool, predictions: Sequence[Predictions], rule: Combiner, *, method: SelectionMethod, **options: Any
) -> ComposedEnsemble:
    """Select members by their predictions on validation images.

    Args:
        pool: The candidates.
        predictions: Each candidate's predictions on validation images.
        rule: The rule for the selected members; its scores must be sums over members.
        method: Selection method.
        **options: Options of `select_members`.

    Raises:
        UsageError: There are no candidates, or the method does not support the rule.
    """
    logits, y_true = stack_logits(predictions), predictions[0].labels
    # The weight of a member is the number of times that it is selected.
    vote = cast(VotingRule, rule.vote.removeprefix("weighted-"))
    selection = select_members(logits, y_true, method=method, rule=vote, tie=rule.tie, **options)
    selected = pool.subset(selection.members)
    weights = None if len(set(selection.counts)) == 1 else tuple(float(count) for count in selection.counts)
    selected_logits = logits[list(selection.members)]
    fitted = fit_combiner(Combiner(vote, rule.tie, weights, selected.groups), selected_logits, y_true)
    accuracy = float((fitted(selected_logits).labels == y_true).mean())
    return ComposedEnsemble(selected, fitted, _fitted_on(predictions, accuracy), selection)


def write_ensemble(path: Path, composed: ComposedEnsemble) -> None:
    """Write an ensemble file, which names the members and contains the fitted rule.

    Raises:
        UsageError: A member is in a pack, or outside the file's folder.
        FmcliError: The file cannot be written.
    """
    members = [
        MemberPath(name, _path_to_name(member, name), _file_digest(member))
        for member, name in zip(composed.pool.members, composed.pool.names, strict=True)
    ]
    write_ensemble_file(path, describe_ensemble(members, composed.rule, path.parent, composed.fitted_on))


def _path_to_name(member: Member, name: str) -> Path:
    """Return the path by which an ensemble file names a member."""
    if isinstance(member, StoredMember):
        return member.path
    if member.path.name == MODEL_FILE:
        return member.path.parent
    if _is_packed(member):
        raise UsageError(
            f"{printable(name)} is in the pack {printable(member.path)}; an ensemble file names members by their paths",
            remedies=[Remedy("unpack", member.path)],
        )
    return member.path


def _file_digest(member: Member) -> str:
    return "" if isinstance(member, StoredMember) else read_metadata(member.path).get("digest", "")


def _is_packed(member: Checkpoint) -> bool:
    from fmcli.checkpoints.pack import PACK_FORMAT

    return read_metadata(member.path).get("format") == PACK_FORMAT


def check_not_packed(pool: Pool) -> None:
    """Refuse members of a pack: they cannot be packed again.

    Raises:
        UsageError: A member is in a pack.
    """
    for member in pool.checkpoints:
        if _is_packed(member):
            raise UsageError(
                f"{printable(member.path)} is a pack already",
                hint="copy it; to change its rule, unpack it first",
                remedies=[Remedy("unpack", member.path)],
            )


def pack_ensemble(path: Path, composed: ComposedEnsemble) -> None:
    """Write an ensemble with its networks to one file.

    Raises:
        UsageError: A member has no network, or is in a pack.
        FmcliError: The file cannot be written.
    """
    from fmcli.checkpoints.pack import write_pack

    members = composed.pool.require_networks()
    check_not_packed(composed.pool)
    sources = [
        MemberPath(name, member.path, _file_digest(member))
        for member, name in zip(members, composed.pool.names, strict=True)
    ]
    write_pack(path, sources, composed.rule, composed.fitted_on)
