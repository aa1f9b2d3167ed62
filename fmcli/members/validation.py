"""The predictions of a pool's members on validation images: what rules learn from and members are chosen by."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fmcli.choices import Views
from fmcli.ensemble import MIN_IMAGES_TO_FIT, Combiner, VotingResult, combine_predictions, fit_combiner
from fmcli.ensemble.external import NoLabelsError
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file, stack_logits
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members.pool import Pool, StoredMember
from fmcli.members.predict import predict_pool

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import (
        Checkpoint,  # torch takes seconds to import, and predictions alone do without it
    )
    from fmcli.data import ImageSet


def predict_validation(
    pool: Pool,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions] | None:
    """Return each member's predictions on its validation images, or None where one has no such images or labels.

    Those that training left beside a checkpoint are taken from there.
    """
    if any(not _has_validation(member) for member in pool.members):
        return None
    stored = [_left_by_training(member) if not isinstance(member, StoredMember) else None for member in pool.members]
    if None not in stored and views == "none":
        return [
            replace(one, member=name, group=group)
            for one, name, group in zip(stored, pool.names, pool.groups, strict=True)
            if one is not None
        ]
    try:
        return predict_pool(pool, "validation", data_root=data_root, labels=labels, views=views)
    except NoLabelsError:
        return None


def _has_validation(member: Checkpoint | StoredMember) -> bool:
    if not isinstance(member, StoredMember):
        return "validation" in member.header.data_digests
    return "validation" in member.files


def _left_by_training(member: Checkpoint) -> Predictions | None:
    """Return the validation predictions beside a checkpoint, where they are of these weights."""
    path = member.path.parent / predictions_file("validation")
    header = member.header
    try:
        stored = load_predictions(path)
    except CheckpointError:
        return None
    of_file = (stored.member, stored.recipe_digest, stored.data_digest)
    same = of_file == (header.name, header.recipe_digest, header.data_digests["validation"])
    return stored if same else None


def predict_for_fitting(
    pool: Pool,
    rule: Combiner,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions] | None:
    """Return the validation predictions that a rule learns from, or None where it has learnt already or has none.

    Raises:
        UsageError: The rule cannot do without, and a member has no validation images, or others than the rest, or was
            trained on some of them.
    """
    if rule.is_fitted and not rule.needs_fit:
        return None
    if len({_fitting_digests(member) for member in pool.checkpoints}) > 1:  # perhaps trained on others' images
        if not rule.needs_fit:
            return None
        refuse_trained_on(pool, data_root)
    found = predict_validation(pool, data_root=data_root, labels=labels, views=views)
    alike = found is not None and len({one.data_digest for one in found} - {""}) <= 1  # other tools' have none
    if rule.needs_fit and not alike:
        raise UsageError(
            f"{rule.vote} learns on validation images, and these members have none in common",
            hint=("" if rule.vote == "stacking" else "--weights gives the weights; ")
            + "--vote soft learns nothing; predictions need a file named validation beside the others",
        )
    return found if alike else None


def _fitting_digests(member: Checkpoint) -> tuple[str, str]:
    digests = member.header.data_digests
    return digests.get("train", ""), digests.get("validation", "")


def fit_rule(
    pool: Pool,
    rule: Combiner,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
    calibrate: bool = True,
) -> Combiner:
    """Return a rule with all that it learns on validation images, or the rule itself where there is nothing to learn.

    Args:
        pool: The members.
        rule: With what was given.
        data_root: Where to look first for built-in sources.
        labels: A file of the validation images' true classes, for other tools' predictions.
        views: Which altered views of each image networks are to average over.
        calibrate: Learn the temperature, too.

    Raises:
        UsageError: See `predict_for_fitting`.
    """
    if not rule.needs_fit and not calibrate:
        return rule
    learn_from = predict_for_fitting(pool, rule, data_root=data_root, labels=labels, views=views)
    if learn_from is None or (len(learn_from[0].labels) < MIN_IMAGES_TO_FIT and not rule.needs_fit):
        return rule
    return fit_combiner(rule, stack_logits(learn_from), learn_from[0].labels, calibrate=calibrate)


def vote_on(
    pool: Pool,
    rule: Combiner,
    split: str,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
    calibrate: bool = True,
) -> VotingResult:
    """Let a pool vote on a split, by a rule that first learns on validation images what it has not learnt yet.

    On the validation images themselves, what is learnt is learnt in folds.

    Args:
        pool: The members.
        rule: How to combine them.
        split: `train`, `validation` or `test`.
        data_root: Where to look first for built-in sources.
        labels: A file of the split's true classes, for other tools' predictions.
        views: Which altered views of each image networks are to average over.
        calibrate: Learn the temperature, too.

    Raises:
        UsageError: See `predict_for_fitting`.
        DataError, CheckpointError: See `predict_pool`.
    """
    here = split == "validation"
    learnt = fit_rule(
        pool,
        rule,
        data_root=data_root,
        labels=labels if here else None,
        views=views,
        calibrate=calibrate,
    )
    predictions = predict_pool(pool, split, data_root=data_root, labels=labels, views=views)
    if learnt is rule:
        return combine_predictions(predictions, rule, output_calibrated=rule.temperature != 1)
    return combine_predictions(predictions, learnt, fitted_here=rule if here else None)


def predict_shared_validation(
    pool: Pool, *, data_root: Path | None = None, labels: Path | None = None
) -> list[Predictions]:
    """Return each member's predictions on the validation images of the first, which none may have been trained on.

    Raises:
        UsageError: There are no validation images, or a member was trained on some of them, by name.
    """
    refuse_trained_on(pool, data_root)
    found = predict_validation(pool, data_root=data_root, labels=labels)
    if found is None:
        raise UsageError(
            "members are chosen on validation images, and some have none",
            hint="train with validation = { first = 5000 } in [data]; predictions need a file named validation, and "
            "other tools' validation-labels.npy beside it",
        )
    return found


def refuse_trained_on(pool: Pool, data_root: Path | None) -> None:
    """Refuse members that were trained on validation images of the first, or have others.

    Raises:
        UsageError: There is such a member, by name, or the first has no validation images.
    """
    if not pool.checkpoints:
        return
    first = pool.checkpoints[0]
    name_of_first = printable(pool.names[pool.members.index(first)])
    digests = first.header.data_digests
    if "validation" not in digests:
        raise UsageError(
            f"{name_of_first} has no validation images to choose on",
            hint="train with validation = { first = 5000 } in [data]",
        )
    seen: frozenset[bytes] | None = None
    problems = []
    for member, name in zip(pool.members, pool.names, strict=True):
        if isinstance(member, StoredMember) or _fitting_digests(member) == _fitting_digests(first):
            continue
        seen = seen or frozenset(_marks(_split_of(first, "validation", data_root)))
        n_shared = sum(mark in seen for mark in _marks(_split_of(member, "train", data_root)))
        if n_shared:
            problems.append(f"{printable(name)} was trained on {n_shared:,} of them")
        elif member.header.data_digests.get("validation") != digests["validation"]:
            problems.append(f"{printable(name)} has validation images of its own")
    if problems:
        raise UsageError(
            f"nothing can be learnt on the validation images of {name_of_first}: " + "; ".join(problems),
            hint="take members whose recipes split the same data in the same way",
        )


def _split_of(member: Checkpoint, split: str, data_root: Path | None) -> ImageSet:
    from fmcli.data import load_splits

    spec = member.header.data
    return load_splits(spec, data_root).named(split)


def _marks(images: ImageSet) -> list[bytes]:
    """Return what tells each image and its label from others."""
    pixels = (image for block in images.blocks() for image in block)
    return [
        hashlib.blake2b(image.tobytes() + int(label).to_bytes(4, "little"), digest_size=16).digest()
        for image, label in zip(pixels, images.labels, strict=True)
    ]
