"""Create ensembles by fitting a rule or selecting members on validation images, and write them to disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from fmcli.choices import SelectionMethod
from fmcli.ensemble import Combiner, fit_combiner
from fmcli.ensemble.file import FittedOn, MemberPath, describe_ensemble, write_ensemble_file
from fmcli.ensemble.predictions import Predictions, stack_logits
from fmcli.ensemble.selection import Selection, select_members
from fmcli.errors import Remedy, UsageError, printable
from fmcli.members.pool import Pool
from fmcli.members.predict import PredictOptions
from fmcli.members.validation import predict_for_fitting
from fmcli.members.vote import accuracy_of_rule


def fit_ensemble(pool: Pool, combiner: Combiner, **options: Unpack[PredictOptions]) -> Pool:
    """Fit a rule and its temperature on validation images.

    Args:
        pool: The members.
        combiner: The rule. If it already has weights, they are not fitted again.
        **options: Options of `predict_pool`.

    Returns:
        The members with the fitted rule. If nothing can be fitted, the rule is unchanged.

    Raises:
        UsageError: The rule needs fitting, and the members have no validation images in common.
    """
    found = predict_for_fitting(pool, combiner, **options)
    if found is None:
        return replace(pool, combiner=combiner, fitted_on=pool.fitted_on if combiner.is_fitted else None)
    logits, y_true = stack_logits(found), found[0].labels
    fitted_on = _fitted_on(found, accuracy_of_rule(combiner, logits, y_true))
    return replace(pool, combiner=fit_combiner(combiner, logits, y_true), fitted_on=fitted_on)


def _fitted_on(predictions: Sequence[Predictions], accuracy: float) -> FittedOn:
    first = predictions[0]
    return FittedOn(
        split="validation", images=len(first.labels), data_digest=first.data_digest, accuracy=round(accuracy, 6)
    )


def select_ensemble(
    pool: Pool, predictions: Sequence[Predictions], combiner: Combiner, *, method: SelectionMethod, **options: Any
) -> tuple[Pool, Selection]:
    """Select members by their predictions on validation images.

    Args:
        pool: The candidates.
        predictions: Each candidate's predictions on validation images.
        combiner: The rule for the selected members. Its scores must be sums over members.
        method: Selection method.
        **options: Options of `select_members`.

    Returns:
        The selected members with their fitted rule, and the details of the selection.

    Raises:
        UsageError: There are no candidates, or the method does not support the rule.
    """
    logits, y_true = stack_logits(predictions), predictions[0].labels
    selection = select_members(logits, y_true, combiner.rule, method=method, **options)
    selected = pool.subset(selection.members)
    # The selection sets the weights: a member's weight is the number of times that it was selected.
    weights = None if len(set(selection.counts)) == 1 else tuple(float(count) for count in selection.counts)
    chosen = replace(combiner.rule.unweighted, weights=weights, groups=selected.groups)
    selected_logits = logits[list(selection.members)]
    fitted = fit_combiner(Combiner(chosen), selected_logits, y_true)
    fitted_on = _fitted_on(predictions, accuracy_of_rule(fitted, selected_logits, y_true))
    return replace(selected, combiner=fitted, fitted_on=fitted_on), selection


def write_ensemble(path: Path, pool: Pool) -> None:
    """Write an ensemble file with the paths of the members and the fitted rule.

    Raises:
        UsageError: A member is in a pack, or outside the file's folder.
        FmcliError: The file cannot be written.
    """
    members = []
    for member, name in zip(pool.members, pool.names, strict=True):
        if member.in_pack:
            raise UsageError(
                f"{printable(name)} is in the pack {printable(member.path)}, "
                "but the members of an ensemble file must be separate files",
                remedies=[Remedy("unpack", member.path)],
            )
        members.append(MemberPath(name, member.path, member.file_digest))
    write_ensemble_file(path, describe_ensemble(members, pool.choose_rule(), path.parent, pool.fitted_on))


def check_not_packed(pool: Pool) -> None:
    """Refuse members of a pack, which cannot be packed again.

    Raises:
        UsageError: A member is in a pack.
    """
    for member in pool.members:
        if member.in_pack:
            raise UsageError(
                f"{printable(member.path)} is already a pack",
                hint="to get a copy, copy the file; to change its voting rule, unpack it first",
                remedies=[Remedy("unpack", member.path)],
            )


def pack_ensemble(path: Path, pool: Pool) -> None:
    """Write the members' networks and their rule to one file.

    Raises:
        UsageError: A member has no network, or is in a pack.
        FmcliError: The file cannot be written.
    """
    from fmcli.checkpoints.pack import write_pack

    check_not_packed(pool)
    sources = [
        MemberPath(name, member.file, member.file_digest)
        for member, name in zip(pool.require_networks(), pool.names, strict=True)
    ]
    write_pack(path, sources, pool.choose_rule(), pool.fitted_on)
