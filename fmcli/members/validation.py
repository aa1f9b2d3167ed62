"""Predict validation images, for fitting voting rules and selecting members."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from fmcli.ensemble import MIN_IMAGES_TO_FIT, Combiner, VotingResult, combine_predictions, cross_fit, fit_combiner
from fmcli.ensemble.external import NoLabelsError
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file, stack_logits
from fmcli.ensemble.rules.vote import Labels, Logits
from fmcli.errors import Action, CheckpointError, Remedy, UsageError, printable
from fmcli.members.pool import Member, Pool
from fmcli.members.predict import PredictOptions, predict_pool
from fmcli.members.stored import StoredMember

if TYPE_CHECKING:
    from fmcli.checkpoints.checkpoint import Checkpoint  # imports torch, which takes seconds


_TRAIN_HINT = "add validation = { first = 5000 } to [data] in the recipe and train again"


def predict_validation(pool: Pool, **options: Unpack[PredictOptions]) -> list[Predictions] | None:
    """Return each member's predictions on its validation images, or None if a member has no such images or labels.

    If all members have predictions that training wrote next to the checkpoints, use these.
    """
    if not all(_has_validation(member) for member in pool.members):
        return None
    if options.get("views", "none") == "none" and len(pool.checkpoints) == len(pool.members):
        saved = [predictions for member in pool.checkpoints if (predictions := _saved_by_training(member)) is not None]
        if len(saved) == len(pool.members):
            return [
                replace(predictions, member=name, group=group)
                for predictions, name, group in zip(saved, pool.names, pool.groups, strict=True)
            ]
    try:
        return predict_pool(pool, "validation", **options)
    except NoLabelsError:
        return None


def _has_validation(member: Member) -> bool:
    return "validation" in (member.files if isinstance(member, StoredMember) else member.header.data_digests)


def _saved_by_training(member: Checkpoint) -> Predictions | None:
    """Return the validation predictions next to a checkpoint, or None if they are missing or do not match it."""
    header = member.header
    try:
        saved = load_predictions(member.path.parent / predictions_file("validation"))
    except CheckpointError:
        return None
    expected = (header.name, header.recipe_digest, header.data_digests["validation"])
    return saved if (saved.member, saved.recipe_digest, saved.data_digest) == expected else None


def predict_for_fitting(pool: Pool, rule: Combiner, **options: Unpack[PredictOptions]) -> list[Predictions] | None:
    """Return the validation predictions to fit a rule on.

    Returns:
        One entry per member. None if the rule is already fitted, or if it needs no fitting and the members have no
        validation images in common.

    Raises:
        UsageError: The rule needs fitting, and the members have no validation images in common, or a member was trained
            on some of these images.
    """
    if rule.is_fitted and not rule.needs_fit:
        return None
    if len({_split_digests(member) for member in pool.checkpoints}) > 1:
        # The validation images of one member can be training images of another member.
        if not rule.needs_fit:
            return None
        check_not_trained_on(pool, options.get("data_root"))
    found = predict_validation(pool, **options)
    # Predictions from other tools have no digest.
    is_shared = found is not None and len({member.data_digest for member in found} - {""}) <= 1
    if rule.needs_fit and not is_shared:
        voting = rule.rule
        by_hand: list[Remedy | Action] = ["weights"] if voting.takes_weights else []
        raise UsageError(
            f"{voting.name} must be fitted on validation images, but these members have no validation images in common",
            hint="for members without a network, add their predictions in a file such as MEMBER/validation.safetensors",
            remedies=[*by_hand, Remedy("vote", "soft")],
        )
    return found if is_shared else None


def _split_digests(member: Checkpoint) -> tuple[str, str]:
    digests = member.header.data_digests
    return digests.get("train", ""), digests.get("validation", "")


def fit_rule(pool: Pool, rule: Combiner, *, calibrate: bool = True, **options: Unpack[PredictOptions]) -> Combiner:
    """Fit a rule on validation images. Return it unchanged if there is nothing to fit.

    Args:
        pool: The members.
        rule: The rule. If it already has weights, they are not fitted again.
        calibrate: Whether to fit the temperature.
        **options: Options of `predict_pool`.

    Raises:
        UsageError: See `predict_for_fitting`.
    """
    if not rule.needs_fit and not calibrate:
        return rule
    found = predict_for_fitting(pool, rule, **options)
    if found is None or (len(found[0].labels) < MIN_IMAGES_TO_FIT and not rule.needs_fit):
        return rule
    return fit_combiner(rule, stack_logits(found), found[0].labels, calibrate=calibrate)


def accuracy_of_rule(rule: Combiner, logits: Logits, y_true: Labels) -> float:
    """Return the accuracy of a rule on validation images. If it needs fitting, it is cross-fitted to these images.

    Args:
        rule: The rule.
        logits: (n_members, n_samples, n_classes).
        y_true: (n_samples,).
    """
    vote = cross_fit(rule, logits, y_true)(logits) if rule.needs_fit else rule(logits)
    return float((vote.labels == y_true).mean())


def vote_on_split(
    pool: Pool,
    rule: Combiner,
    split: str,
    *,
    calibrate: bool = True,
    **options: Unpack[PredictOptions],
) -> VotingResult:
    """Fit a rule on validation images if needed, and combine the members' predictions on a split.

    On the validation split itself, the rule is cross-fitted.

    Args:
        pool: The members.
        rule: The rule. If it already has weights, they are not fitted again.
        split: `train`, `validation` or `test`.
        calibrate: Whether to fit the temperature.
        **options: Options of `predict_pool`. `labels` are the true classes of the split.

    Raises:
        UsageError: See `predict_for_fitting`.
        DataError, CheckpointError: See `predict_pool`.
    """
    is_validation = split == "validation"
    fit_options: PredictOptions = options if is_validation else {**options, "labels": None}
    fitted = fit_rule(pool, rule, calibrate=calibrate, **fit_options)
    predictions = predict_pool(pool, split, **options)
    if fitted is rule:
        return combine_predictions(predictions, rule, output_calibrated=rule.temperature != 1)
    return combine_predictions(predictions, fitted, fitted_here=rule if is_validation else None)


def predict_shared_validation(pool: Pool, **options: Unpack[PredictOptions]) -> list[Predictions]:
    """Return each member's predictions on validation images that all members share and no member was trained on.

    Raises:
        UsageError: There are no such images.
    """
    check_not_trained_on(pool, options.get("data_root"))
    found = predict_validation(pool, **options)
    if found is None:
        raise UsageError(
            "selection needs validation images, but some members have none",
            hint=f"{_TRAIN_HINT}; for members without a network, add their predictions in a file such as "
            "MEMBER/validation.safetensors; predictions from other tools also need validation-labels.npy",
        )
    return found


def check_not_trained_on(pool: Pool, data_root: Path | None) -> None:
    """Refuse networks that were trained on the first network's validation images or have different validation images.

    Raises:
        UsageError: There is such a network, or the first network has no validation images.
    """
    if not pool.checkpoints:
        return
    first = pool.checkpoints[0]
    first_name = printable(pool.names[pool.members.index(first)])
    digests = first.header.data_digests
    if "validation" not in digests:
        raise UsageError(f"{first_name} has no validation images", hint=_TRAIN_HINT)
    held_out: frozenset[bytes] | None = None
    problems = []
    for member, name in zip(pool.members, pool.names, strict=True):
        if isinstance(member, StoredMember) or _split_digests(member) == _split_digests(first):
            continue
        held_out = held_out or frozenset(_image_digests(first, "validation", data_root))
        n_shared = sum(digest in held_out for digest in _image_digests(member, "train", data_root))
        if n_shared:
            problems.append(f"{printable(name)} was trained on {n_shared:,} of them")
        elif member.header.data_digests.get("validation") != digests["validation"]:
            problems.append(f"{printable(name)} has different validation images")
    if problems:
        raise UsageError(
            f"cannot fit or select on the validation images of {first_name}: " + "; ".join(problems),
            hint="use members whose recipes split the same data in the same way",
        )


def _image_digests(member: Checkpoint, split: str, data_root: Path | None) -> list[bytes]:
    """Return a digest of each image in a split, together with its label."""
    from fmcli.data import load_splits

    images = load_splits(member.header.data, data_root).named(split)
    pixels = (image for block in images.blocks() for image in block)
    return [
        hashlib.blake2b(image.tobytes() + int(label).to_bytes(4, "little"), digest_size=16).digest()
        for image, label in zip(pixels, images.labels, strict=True)
    ]
