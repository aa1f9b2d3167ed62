"""Predict splits and image files with members that have networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import Invert, Views
from fmcli.ensemble import Combiner
from fmcli.ensemble.predictions import ClassProbability, ImagePrediction, Predictions
from fmcli.ensemble.rules.vote import Vote
from fmcli.errors import CheckpointError, DataError, join_names, printable
from fmcli.members.member import ImageBatch, Network, TrainingFacts

if TYPE_CHECKING:
    from fmcli.data import ImageReader, ImageSet, LoadedImage  # imports torch, which takes seconds

_MAX_LISTED_CLASSES = 5


def predict_splits(
    members: Sequence[Network], split: str, *, data_root: Path | None = None, views: Views = "none"
) -> list[Predictions]:
    """Predict a split of the images of each member's recipe.

    Members share work in two steps. Members with the same `[data]` table form a group, whose images are loaded once.
    Each batch of images is read once and predicted by all members of the group. They also share results computed from
    the pixels, such as normalized pixels: see `ImageBatch.derive`.

    Args:
        members: Members with networks.
        split: `train`, `validation` or `test`.
        data_root: First folder to search for built-in sources.
        views: Test-time augmentation: the views of each image to average over.

    Returns:
        One entry per member.

    Raises:
        DataError: The images are missing or damaged.
        CheckpointError: The images have changed since a member was trained, or its logits are not finite.
    """
    indices_by_data: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        indices_by_data.setdefault(member.training.data.model_dump_json(), []).append(index)
    found: dict[int, Predictions] = {}
    for indices in indices_by_data.values():
        from fmcli.data import load_splits  # not imported if there are no networks

        group = [members[index] for index in indices]
        images = load_splits(group[0].training.data, data_root).named(split)
        found |= zip(indices, _predict_images(group, split, images, views), strict=True)
    return [found[index] for index in range(len(members))]


def _predict_images(members: Sequence[Network], split: str, images: ImageSet, views: Views) -> Iterator[Predictions]:
    """Yield the predictions of each member on the same images."""
    from fmcli.data import evaluation_batches

    for member in members:
        check_images(member, split, images)
    logits: list[list[NDArray[np.float32]]] = [[] for _ in members]
    for pixels in evaluation_batches(images):
        batch = ImageBatch(pixels, split)
        for member, batch_logits in zip(members, logits, strict=True):
            batch_logits.append(member.predict_images(batch, views=views))
    for member, batch_logits in zip(members, logits, strict=True):
        yield _to_predictions(member, split, images, np.concatenate(batch_logits))


def _to_predictions(member: Network, split: str, images: ImageSet, logits: NDArray[np.float32]) -> Predictions:
    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"{printable(member.path)} gives NaN or infinite logits on {split}: its weights are unusable",
            hint="train that member again, or leave it out",
        )
    return Predictions(
        logits=logits,
        labels=images.labels,
        class_names=member.class_names,
        member=member.name,
        split=split,
        data_digest=images.digest,
        recipe_digest=member.training.recipe_digest,
        group=member.group,
    )


def check_images(member: Network, split: str, images: ImageSet) -> None:
    """Check that the images of a split have not changed since a member was trained.

    Raises:
        CheckpointError: The images have a different shape, different classes or a different digest.
    """
    differences = list(_differences(member, split, images))
    if differences:
        raise CheckpointError(
            f"the {split} images of {printable(member.training.data.source)} have changed since "
            f"{printable(member.path)} was trained: {'; '.join(differences)}",
            hint="restore the images, or train again",
        )


def _differences(member: Network, split: str, images: ImageSet) -> Iterator[str]:
    """Yield the differences between the images of a split and the images that a member was trained with."""
    training = member.training
    if images.input_shape != training.input_shape:
        yield f"shape (C, H, W) was {training.input_shape}, now {images.input_shape}"
    before, now = member.class_names, images.class_names
    for label, names in (
        ("missing", [name for name in before if name not in now]),
        ("new", [name for name in now if name not in before]),
    ):
        if names:
            yield f"{label} class{'es' * (len(names) > 1)} {join_names(names, _MAX_LISTED_CLASSES)}"
    if before != now and set(before) == set(now):
        yield "classes in a different order"
    digest = training.data_digests.get(split, images.digest)
    if images.digest != digest:
        yield f"SHA-256 was {digest[:12]}, now {images.digest[:12]}"


def label_images(
    members: Sequence[Network],
    images: Iterable[LoadedImage],
    combiner: Combiner,
    *,
    top: int = 1,
    batch_size: int = 64,
    reject_below: float = 0.0,
    views: Views = "none",
) -> Iterator[ImagePrediction]:
    """Label images by the vote of all members, in order. Read only one batch ahead.

    Args:
        members: At least one member with a network. All have the same classes and input shape.
        images: Images from an `ImageReader` for these members.
        combiner: The voting rule.
        top: Number of classes to report per image.
        batch_size: Number of images per batch.
        reject_below: An image is undecided if the probability of its predicted class is below this number.
        views: Test-time augmentation: the views of each image to average over.

    Yields:
        One entry per image. The entry of an unreadable image has an error.
    """
    stream = iter(images)
    while loaded := list(islice(stream, batch_size)):
        pixels = [image.pixels for image in loaded if image.pixels is not None]
        vote = None
        if pixels:
            batch = ImageBatch(np.stack(pixels))
            vote = combiner(np.stack([member.predict_images(batch, views=views) for member in members]))
        row = 0
        for image in loaded:
            if image.pixels is None or vote is None:
                yield ImagePrediction(image.name, image.index, error=image.error)
                continue
            yield _label(image, vote, row, members[0].class_names, top, reject_below)
            row += 1


def _label(
    image: LoadedImage, vote: Vote, row: int, class_names: tuple[str, ...], top: int, reject_below: float
) -> ImagePrediction:
    scores, probabilities, winner = vote.scores[row], vote.probabilities[row], int(vote.labels[row])
    order = sorted(range(len(class_names)), key=lambda k: (k != winner, -scores[k], -probabilities[k]))
    undecided = bool(probabilities[winner] < reject_below)
    return ImagePrediction(
        image.name,
        image.index,
        label=None if undecided else class_names[winner],
        probability=float(probabilities[winner]),
        votes=int(vote.votes[row, winner]),
        undecided=undecided,
        top=tuple(ClassProbability(class_names[k], float(probabilities[k])) for k in order[:top]),
    )


def image_reader(training: TrainingFacts, invert: Invert) -> ImageReader:
    """Return a reader that converts image files to the input of a network.

    Raises:
        DataError: The network's images have neither 1 nor 3 channels.
    """
    from fmcli.data import ImageReader

    channels, *_ = training.input_shape
    if channels not in (1, 3):
        raise DataError(f"these members need images with {channels} channels, but image files have 1 or 3")
    return ImageReader(training.input_shape, training.background, invert)
