"""Predict splits and image files with networks."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fmcli.checkpoints.checkpoint import Checkpoint, Header
from fmcli.checkpoints.layout import make_names_unique
from fmcli.choices import Invert, Views
from fmcli.data import ImageReader, ImageSet, LoadedImage, evaluation_loader, load_splits
from fmcli.ensemble import Combiner
from fmcli.ensemble.predictions import ClassProbability, ImagePrediction, Predictions
from fmcli.ensemble.rules.vote import Vote
from fmcli.errors import CheckpointError, DataError, join_names, printable
from fmcli.hardware.device import use_bf16
from fmcli.networks.inference import InferenceNetwork, predict_all_logits

_MAX_LISTED_CLASSES = 5


def predict_splits(
    members: Sequence[Checkpoint],
    split: str,
    *,
    data_root: Path | None = None,
    views: Views = "none",
) -> list[Predictions]:
    """Predict a split of each member's own images. Read images that several members share only once.

    Args:
        members: Loaded checkpoints.
        split: `train`, `validation` or `test`.
        data_root: First folder to search for built-in sources.
        views: Test-time augmentation: the views of each image to average over.

    Returns:
        One entry per member.

    Raises:
        DataError: The images are missing or damaged.
        CheckpointError: The images have changed since a member was trained, or its logits are not finite.
    """
    names = make_names_unique([member.header.name for member in members], [member.path for member in members])
    indices_by_data: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        indices_by_data.setdefault(member.header.data.model_dump_json(), []).append(index)
    found: dict[int, Predictions] = {}
    for indices in indices_by_data.values():
        images = load_splits(members[indices[0]].header.data, data_root).named(split)
        group, group_names = [members[index] for index in indices], [names[index] for index in indices]
        found |= zip(indices, _predict_images(group, group_names, split, images, views), strict=True)
    return [found[index] for index in range(len(members))]


def check_images(member: Checkpoint, split: str, images: ImageSet) -> str:
    """Check that the images of a split have not changed since a member was trained, and return their digest.

    Raises:
        CheckpointError: The images have a different shape, different classes or a different digest.
    """
    header = member.header
    differences = list(_differences(header, split, images))
    if differences:
        raise CheckpointError(
            f"the {split} images of {printable(header.data.source)} have changed since {printable(member.path)} was "
            f"trained: {'; '.join(differences)}",
            hint="restore the images, or train again",
        )
    return images.digest


def _differences(header: Header, split: str, images: ImageSet) -> Iterator[str]:
    """Yield the differences between the images of a split and their description in a checkpoint."""
    if images.input_shape != header.input_shape:
        yield f"shape (C, H, W) was {header.input_shape}, now {images.input_shape}"
    before, now = header.class_names, images.class_names
    for label, names in (
        ("missing", [name for name in before if name not in now]),
        ("new", [name for name in now if name not in before]),
    ):
        if names:
            yield f"{label} class{'es' * (len(names) > 1)} {join_names(names, _MAX_LISTED_CLASSES)}"
    if before != now and set(before) == set(now):
        yield "classes in a different order"
    if images.digest != header.data_digests.get(split, images.digest):
        yield f"SHA-256 was {header.data_digests[split][:12]}, now {images.digest[:12]}"


def _predict_images(
    members: Sequence[Checkpoint], names: Sequence[str], split: str, images: ImageSet, views: Views
) -> Iterator[Predictions]:
    """Yield the predictions of each member for the same images. All members are on the same device."""
    digests = [check_images(member, split, images) for member in members]
    loader = evaluation_loader(images, members[0].device)
    networks = [(inference_network(member), member.header.normalization_of(split)) for member in members]
    all_logits = predict_all_logits(networks, loader.batches(), views=views)
    for member, name, digest, logits in zip(members, names, digests, all_logits, strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError(
                f"{printable(name)} gives NaN or infinite logits on {split}: its weights are unusable",
                hint="train that member again, or leave it out",
            )
        yield Predictions(
            logits=logits.cpu().numpy(),
            labels=images.labels,
            class_names=member.header.class_names,
            member=name,
            split=split,
            data_digest=digest,
            recipe_digest=member.header.recipe_digest,
            group=member.group,
        )


def inference_network(member: Checkpoint) -> InferenceNetwork:
    """Return a member's network for prediction, in the precision that its recipe uses for training on its device."""
    return InferenceNetwork(member.model, bf16=use_bf16(member.header.member.trainer.precision, member.device))


def label_images(
    members: Sequence[Checkpoint],
    images: Iterable[LoadedImage],
    rule: Combiner,
    *,
    top: int = 1,
    batch_size: int = 64,
    reject_below: float = 0.0,
    views: Views = "none",
) -> Iterator[ImagePrediction]:
    """Label images by the vote of all members, in order. Read only one batch ahead.

    Args:
        members: At least one checkpoint. All have the same classes and input shape.
        images: Images from an `ImageReader` for these members.
        rule: The voting rule.
        top: Number of classes to report per image.
        batch_size: Number of images per batch.
        reject_below: An image is undecided if the probability of its predicted class is below this number.
        views: Test-time augmentation: the views of each image to average over.

    Yields:
        One entry per image. The entry of an unreadable image has an error.
    """
    stream = iter(images)
    networks = [(inference_network(member), member.header.normalization) for member in members]
    while batch := list(islice(stream, batch_size)):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        vote = None
        if pixels:
            inputs = torch.from_numpy(np.stack(pixels)).to(members[0].device)
            vote = rule(torch.stack(predict_all_logits(networks, [inputs], views=views)).cpu().numpy())
        row = 0
        for image in batch:
            if image.pixels is None or vote is None:
                yield ImagePrediction(image.name, image.index, error=image.error)
                continue
            yield _label(image, vote, row, members[0].header.class_names, top, reject_below)
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


def image_reader(members: Sequence[Checkpoint], invert: Invert) -> ImageReader:
    """Return a reader that converts image files to the input of members.

    Raises:
        DataError: The members' images have neither 1 nor 3 channels.
    """
    header = members[0].header
    if header.input_shape[0] not in (1, 3):
        raise DataError(f"these members need images with {header.input_shape[0]} channels, but image files have 1 or 3")
    return ImageReader(header.input_shape, header.background, invert)
