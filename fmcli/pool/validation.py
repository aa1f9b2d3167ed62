"""The predictions of a pool's members on validation images: what rules learn from and members are chosen by."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from fmcli.checkpoint import Checkpoint
from fmcli.choices import Views
from fmcli.data import ImageSet, load_images, split_images
from fmcli.ensemble import Combiner, fit_combiner
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.pool.places import Pool, StoredMember
from fmcli.pool.predict import predict_pool
from fmcli.predictions import Predictions, load_predictions, predictions_file, stack_logits


def predict_validation(
    pool: Pool,
    *,
    device: torch.device,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions] | None:
    """Return each member's predictions on its validation images, or None where one has no such images.

    Those that training left beside a checkpoint are taken from there.
    """
    if any(not _has_validation(member) for member in pool.members):
        return None
    stored = [_left_by_training(member) if isinstance(member, Checkpoint) else None for member in pool.members]
    if None not in stored and views == "none":
        return [
            replace(one, member=name, group=group)
            for one, name, group in zip(stored, pool.names, pool.groups, strict=True)
            if one is not None
        ]
    return predict_pool(pool, "validation", device=device, data_root=data_root, labels=labels, views=views)


def _has_validation(member: Checkpoint | StoredMember) -> bool:
    if isinstance(member, Checkpoint):
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


def predict_to_learn(
    pool: Pool,
    rule: Combiner,
    *,
    device: torch.device,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions] | None:
    """Return the validation predictions that a rule learns from, or None where it has learnt already or has none.

    Raises:
        UsageError: The rule cannot do without, and a member has no validation images, or others than the rest.
    """
    if rule is pool.rule and not rule.learns:
        return None
    found = predict_validation(pool, device=device, data_root=data_root, labels=labels, views=views)
    alike = found is not None and len({one.data_digest for one in found} - {""}) <= 1  # other tools' have none
    if rule.learns and not alike:
        raise UsageError(
            f"{rule.vote} learns on validation images, and these members have none in common",
            hint="--weights gives a weighted rule its weights; --vote soft and --vote majority learn nothing",
        )
    return found if alike else None


def learn_rule(
    pool: Pool,
    rule: Combiner,
    *,
    device: torch.device,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
    calibrate: bool = True,
) -> Combiner:
    """Return a rule with all that it learns on validation images, or the rule itself where there is nothing to learn.

    Args:
        pool: The members.
        rule: With what was given.
        device: Where their networks are.
        data_root: Where to look first for built-in sources.
        labels: A file of the true classes, for other tools' predictions.
        views: Which altered views of each image networks are to average over.
        calibrate: Learn the temperature, too.

    Raises:
        UsageError: See `predict_to_learn`.
    """
    if not rule.learns and not calibrate:
        return rule
    learn_from = predict_to_learn(pool, rule, device=device, data_root=data_root, labels=labels, views=views)
    if learn_from is None:
        return rule
    return fit_combiner(rule, stack_logits(learn_from), learn_from[0].labels, calibrate=calibrate)


def predict_shared_validation(
    pool: Pool, *, device: torch.device, data_root: Path | None = None, labels: Path | None = None
) -> list[Predictions]:
    """Return each member's predictions on the validation images of the first, which none may have been trained on.

    Raises:
        UsageError: There are no validation images, or a member was trained on some of them, by name.
    """
    first = next(iter(pool.checkpoints), None)
    if first is not None:
        if "validation" not in first.header.data_digests:
            raise UsageError(
                f"{printable(pool.names[pool.members.index(first)])} has no validation images to choose on",
                hint="train with validation = { first = 5000 } in [data]",
            )
        _refuse_trained_on(pool, first, data_root)
    found = predict_validation(pool, device=device, data_root=data_root, labels=labels)
    if found is None:
        raise UsageError(
            "members are chosen on validation images, and some have none",
            hint="train with validation = { first = 5000 } in [data]; predictions need a file named validation",
        )
    return found


def _refuse_trained_on(pool: Pool, first: Checkpoint, data_root: Path | None) -> None:
    """Refuse members that were trained on validation images of the first.

    Raises:
        UsageError: One was, by name, or has other validation images.
    """
    digests = first.header.data_digests
    same = (digests["train"], digests["validation"])
    seen: frozenset[bytes] | None = None
    problems = []
    for member, name in zip(pool.members, pool.names, strict=True):
        if not isinstance(member, Checkpoint):
            continue
        own = member.header.data_digests
        if (own["train"], own.get("validation")) == same:
            continue
        seen = seen or _marks(_split_of(first, "validation", data_root))
        n_shared = sum(mark in seen for mark in _list_marks(_split_of(member, "train", data_root)))
        if n_shared:
            problems.append(f"{printable(name)} was trained on {n_shared:,} of them")
        elif own.get("validation") != digests["validation"]:
            problems.append(f"{printable(name)} has validation images of its own")
    if problems:
        raise UsageError(
            f"members cannot be chosen on the validation images of {printable(pool.names[pool.members.index(first)])}: "
            + "; ".join(problems),
            hint="choose among members whose recipes split the same data in the same way",
        )


def _split_of(member: Checkpoint, split: str, data_root: Path | None) -> ImageSet:
    spec = member.header.data
    return split_images(load_images(spec, data_root=data_root), spec).named(split)


def _marks(images: ImageSet) -> frozenset[bytes]:
    return frozenset(_list_marks(images))


def _list_marks(images: ImageSet) -> list[bytes]:
    """Return what tells each image and its label from others."""
    return [
        hashlib.blake2b(image.tobytes() + int(label).to_bytes(4, "little"), digest_size=16).digest()
        for image, label in zip(images.images, images.labels, strict=True)
    ]
