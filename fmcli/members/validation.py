"""Predict validation images, for fitting voting rules and selecting members."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from fmcli.ensemble import Combiner
from fmcli.ensemble.external import NoLabelsError
from fmcli.ensemble.predictions import Predictions, load_predictions, predictions_file
from fmcli.errors import Action, CheckpointError, Remedy, UsageError, printable
from fmcli.members.member import Network, TrainingFacts
from fmcli.members.pool import Pool
from fmcli.members.predict import PredictOptions, predict_pool

_TRAIN_HINT = "add validation = { first = 5000 } to [data] in the recipe and train again"


def predict_validation(pool: Pool, **options: Unpack[PredictOptions]) -> list[Predictions] | None:
    """Return each member's predictions on its validation images, or None if a member has no such images or labels.

    If all members have predictions that training wrote next to the checkpoints, use these.
    """
    if not all("validation" in member.splits for member in pool.members):
        return None
    if options.get("views", "none") == "none" and len(pool.networks) == len(pool.members):
        saved = [predictions for member in pool.networks if (predictions := _saved_by_training(member)) is not None]
        if len(saved) == len(pool.members):
            return [
                replace(predictions, member=name, group=group)
                for predictions, name, group in zip(saved, pool.names, pool.groups, strict=True)
            ]
    try:
        return predict_pool(pool, "validation", **options)
    except NoLabelsError:
        return None


def _saved_by_training(member: Network) -> Predictions | None:
    """Return the validation predictions next to a checkpoint, or None if they are missing or do not match it."""
    try:
        saved = load_predictions(member.file.parent / predictions_file("validation"))
    except CheckpointError:
        return None
    expected = (member.name, member.training.recipe_digest, member.training.data_digests["validation"])
    return saved if (saved.member, saved.recipe_digest, saved.data_digest) == expected else None


def predict_for_fitting(pool: Pool, combiner: Combiner, **options: Unpack[PredictOptions]) -> list[Predictions] | None:
    """Return the validation predictions to fit a rule on.

    Returns:
        One entry per member. None if the rule is already fitted, or if it needs no fitting and the members have no
        validation images in common.

    Raises:
        UsageError: The rule needs fitting, and the members have no validation images in common, or a member was trained
            on some of these images.
    """
    if combiner.is_fitted and not combiner.needs_fit:
        return None
    if len({_split_digests(member.training) for member in pool.networks}) > 1:
        # The validation images of one member can be training images of another member.
        if not combiner.needs_fit:
            return None
        check_not_trained_on(pool, options.get("data_root"))
    found = predict_validation(pool, **options)
    # Predictions from other tools have no digest.
    is_shared = found is not None and len({member.data_digest for member in found} - {""}) <= 1
    if combiner.needs_fit and not is_shared:
        rule = combiner.rule
        by_hand: list[Remedy | Action] = ["weights"] if rule.takes_weights else []
        raise UsageError(
            f"{rule.name} must be fitted on validation images, but these members have no validation images in common",
            hint="for members without a network, add their predictions in a file such as MEMBER/validation.safetensors",
            remedies=[*by_hand, Remedy("vote", "soft")],
        )
    return found if is_shared else None


def _split_digests(training: TrainingFacts) -> tuple[str, str]:
    return training.data_digests.get("train", ""), training.data_digests.get("validation", "")


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
    trained = [
        (printable(name), member.training)
        for member, name in zip(pool.members, pool.names, strict=True)
        if member.training is not None
    ]
    if not trained:
        return
    (first_name, first), *others = trained
    if "validation" not in first.data_digests:
        raise UsageError(f"{first_name} has no validation images", hint=_TRAIN_HINT)
    others = [(name, training) for name, training in others if _split_digests(training) != _split_digests(first)]
    held_out = frozenset(_image_digests(first, "validation", data_root)) if others else frozenset()
    problems = []
    for name, training in others:
        n_shared = sum(digest in held_out for digest in _image_digests(training, "train", data_root))
        if n_shared:
            problems.append(f"{name} was trained on {n_shared:,} of them")
        elif training.data_digests.get("validation") != first.data_digests["validation"]:
            problems.append(f"{name} has different validation images")
    if problems:
        raise UsageError(
            f"cannot fit or select on the validation images of {first_name}: " + "; ".join(problems),
            hint="use members whose recipes split the same data in the same way",
        )


def _image_digests(training: TrainingFacts, split: str, data_root: Path | None) -> list[bytes]:
    """Return a digest of each image in a split, together with its label."""
    from fmcli.data import load_splits

    images = load_splits(training.data, data_root).named(split)
    pixels = (image for block in images.blocks() for image in block)
    return [
        hashlib.blake2b(image.tobytes() + int(label).to_bytes(4, "little"), digest_size=16).digest()
        for image, label in zip(pixels, images.labels, strict=True)
    ]
