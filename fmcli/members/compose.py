"""Making ensembles: learning a rule or choosing members on validation data, and keeping what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import VotingRule
from fmcli.ensemble import Combiner, cross_fit, fit_combiner
from fmcli.ensemble.file import FittedOn, MemberPath, describe_ensemble, write_ensemble_file
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.selection import SELECTION_METHODS, Selection
from fmcli.errors import UsageError, printable
from fmcli.members import Pool, StoredMember, predict_for_fitting
from fmcli.storage.reading import read_metadata

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import (
        Checkpoint,  # torch takes seconds to import, and predictions alone do without it
    )


@dataclass(frozen=True, slots=True)
class Composed:
    """An ensemble with all that was learnt for it.

    Args:
        pool: Its members.
        rule: How they are combined.
        fitted_on: The images that it was learnt on; None where there were none, and so nothing to learn.
        selection: How its members were chosen, if they were.
    """

    pool: Pool
    rule: Combiner
    fitted_on: FittedOn | None
    selection: Selection | None = None


def fit_ensemble(pool: Pool, rule: Combiner, *, data_root: Path | None = None, labels: Path | None = None) -> Composed:
    """Learn what a rule leaves open, and the temperature, on validation images.

    Args:
        pool: The members.
        rule: With what was given.
        data_root: Where to look first for built-in sources.
        labels: A file of the validation images' true classes, for other tools' predictions.

    Raises:
        UsageError: There are no validation images in common, and the rule cannot do without.
    """
    learn_from = predict_for_fitting(pool, rule, data_root=data_root, labels=labels)
    if learn_from is None:
        return Composed(
            pool, rule, pool.fitted_on if rule.is_fitted else None
        )  # learnt already, or nothing to learn from
    logits, y_true = stack_logits(learn_from), learn_from[0].labels
    vote = cross_fit(rule, logits, y_true)(logits) if rule.needs_fit else rule(logits)
    accuracy = float((vote.labels == y_true).mean())
    return Composed(pool, fit_combiner(rule, logits, y_true), _fitted_on(learn_from, accuracy))


def _fitted_on(predictions: Sequence[Predictions], accuracy: float) -> FittedOn:
    first = predictions[0]
    return FittedOn(
        split="validation", images=len(first.labels), data_digest=first.data_digest, accuracy=round(accuracy, 6)
    )


def select_ensemble(
    pool: Pool, predictions: Sequence[Predictions], rule: Combiner, *, method: str, **options: object
) -> Composed:
    """Choose members by their predictions on validation images.

    Args:
        pool: Those to choose from.
        predictions: Of each, on validation images.
        rule: How the chosen are to be combined; its scores must add up.
        method: One of `SELECTION_METHODS`.
        options: Of that method.

    Raises:
        UsageError: There is nothing to choose from, or the rule cannot be chosen by.
    """
    logits, y_true = stack_logits(predictions), predictions[0].labels
    vote = cast(VotingRule, rule.vote.removeprefix("weighted-"))  # how often each is chosen is its weight
    selection: Selection = SELECTION_METHODS[method](logits, y_true, rule=vote, tie=rule.tie, **options)
    chosen = pool.subset(selection.members)
    weights = None if len(set(selection.counts)) == 1 else tuple(float(count) for count in selection.counts)
    own = Combiner(vote, rule.tie, weights, chosen.groups)
    own = fit_combiner(own, logits[list(selection.members)], y_true)
    accuracy = float((own(logits[list(selection.members)]).labels == y_true).mean())
    return Composed(chosen, own, _fitted_on(predictions, accuracy), selection)


def write_ensemble(path: Path, composed: Composed) -> None:
    """Write an ensemble file: who its members are, how they are combined and what was learnt for it.

    Raises:
        UsageError: A member is in a pack, or lies outside the file's folder.
        FmcliError: The file cannot be written.
    """
    places = [
        MemberPath(name, _place_of(member, name), _digest_of(member))
        for member, name in zip(composed.pool.members, composed.pool.names, strict=True)
    ]
    write_ensemble_file(path, describe_ensemble(places, composed.rule, path.parent, composed.fitted_on))


def _place_of(member: Checkpoint | StoredMember, name: str) -> Path:
    if isinstance(member, StoredMember):
        return member.place
    if member.path.name == MODEL_FILE:
        return member.path.parent
    if _is_packed(member):
        raise UsageError(
            f"{printable(name)} is inside {printable(member.path)}, and an ensemble file names members that lie open",
            hint="fmcli ensemble unpack takes it apart",
        )
    return member.path


def _digest_of(member: Checkpoint | StoredMember) -> str:
    return "" if isinstance(member, StoredMember) else read_metadata(member.path).get("digest", "")


def _is_packed(member: Checkpoint) -> bool:
    from fmcli.checkpoints.pack import PACK_FORMAT

    return read_metadata(member.path).get("format") == PACK_FORMAT


def refuse_packed(pool: Pool) -> None:
    """Refuse members of a pack, where one is to be made.

    Raises:
        UsageError: One is.
    """
    for member in pool.checkpoints:
        if _is_packed(member):
            raise UsageError(
                f"{printable(member.path)} is a pack already",
                hint=f"copy it; or for another rule, fmcli ensemble unpack {printable(member.path)} --output DIR",
            )


def pack_ensemble(path: Path, composed: Composed) -> None:
    """Write an ensemble as one file, networks and all.

    Raises:
        UsageError: A member has no network, or is in a pack already.
        FmcliError: The file cannot be written.
    """
    from fmcli.checkpoints.pack import write_pack

    members = composed.pool.networks()
    refuse_packed(composed.pool)
    places = [
        MemberPath(name, member.path, _digest_of(member))
        for member, name in zip(members, composed.pool.names, strict=True)
    ]
    write_pack(path, places, composed.rule, composed.fitted_on)
