"""From checkpoints and images to predictions: a split for evaluation, or pictures from anywhere."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fmcli.checkpoint import Checkpoint
from fmcli.choices import Invert, Views
from fmcli.data import DeviceLoader, ImageSet, Picture, PictureReader, Splits, load_images, split_images
from fmcli.device import use_bf16
from fmcli.ensemble import Combiner
from fmcli.errors import CheckpointError, DataError, printable
from fmcli.folders import tell_apart
from fmcli.models import EVALUATION_BATCH, InferenceNetwork, predict_logits
from fmcli.predictions import ClassProbability, Labelled, Predictions
from fmcli.recipe.networks import kernel_group
from fmcli.recipe.specs import DataSpec
from fmcli.voting import Vote


def predict_splits(
    members: Sequence[Checkpoint],
    split: str,
    *,
    data_root: Path | None = None,
    views: Views = "none",
) -> list[Predictions]:
    """Predict a split with each member, on the images that its own recipe names.

    Args:
        members: Loaded checkpoints.
        split: `train`, `validation` or `test`.
        data_root: Where to look first for built-in sources.
        views: Which altered views of each image to average over.

    Returns:
        One entry a member.

    Raises:
        DataError: The images are missing or broken.
        CheckpointError: They are not what the member was trained on.
    """
    seen: dict[str, Splits] = {}
    predictions = []
    for member, name in zip(members, name_members(members), strict=True):
        spec = member.header.data
        key = spec.model_dump_json()
        if key not in seen:
            seen[key] = _load_splits(spec, data_root)
        predictions.append(_predict_split(member, name, split, seen[key].named(split), views))
    return predictions


def _load_splits(spec: DataSpec, data_root: Path | None) -> Splits:
    return split_images(load_images(spec, data_root=data_root), spec)


def check_images(member: Checkpoint, split: str, images: ImageSet) -> str:
    """Return the digest of images, refusing those that a member was not trained with.

    Raises:
        CheckpointError: They have other classes, another size or another digest.
    """
    header = member.header
    if images.class_names != header.class_names or images.input_shape != header.input_shape:
        raise CheckpointError(
            f"{printable(member.path)} was trained on {len(header.class_names)} classes of "
            f"{header.input_shape} images; {header.data.source} now has {len(images.class_names)} "
            f"of {images.input_shape}"
        )
    digest = images.digest
    if digest != header.data_digests.get(split, digest):
        raise CheckpointError(
            f"the {split} images of {printable(header.data.source)} are not those that "
            f"{printable(member.path)} was trained with (SHA-256 {digest[:12]}, was {header.data_digests[split][:12]})",
            hint="bring the data back, or train again",
        )
    return digest


def _predict_split(member: Checkpoint, name: str, split: str, images: ImageSet, views: Views) -> Predictions:
    digest = check_images(member, split, images)
    header = member.header
    loader = DeviceLoader(images, batch_size=EVALUATION_BATCH, device=member.device)
    network = network_of(member)
    logits = predict_logits(network, loader.batches(), header.normalization_of(split), views=views)
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(
            f"{printable(name)} answers with NaN or infinity on {split}: its weights are no good",
            hint="train it again, or leave it out",
        )
    return Predictions(
        logits=logits.cpu().numpy(),
        labels=images.labels,
        class_names=header.class_names,
        member=name,
        split=split,
        data_digest=digest,
        recipe_digest=header.recipe_digest,
        group=kernel_group(header.member.model),
    )


def network_of(member: Checkpoint) -> InferenceNetwork:
    """Return a member's network to answer with, in the precision that its recipe trains in on its device."""
    return InferenceNetwork(member.model, bf16=use_bf16(member.header.member.trainer.precision, member.device))


def name_members(members: Sequence[Checkpoint]) -> list[str]:
    """Return a name for each member: its own, with its run's or its whole path where several have the same."""
    own = [member.header.name for member in members]
    return tell_apart(own, [member.path for member in members])


def label_pictures(
    members: Sequence[Checkpoint],
    pictures: Iterable[Picture],
    rule: Combiner,
    *,
    top: int = 1,
    batch_size: int = 64,
    reject_below: float = 0.0,
    views: Views = "none",
) -> Iterator[Labelled]:
    """Label pictures by the vote of all members, in their order, reading only a batch ahead.

    Args:
        members: Loaded checkpoints that match; one is an ensemble of one.
        pictures: From a `PictureReader` made for these members.
        rule: How to combine them.
        top: How many classes to name for each picture.
        batch_size: How many pictures go through the networks at once.
        reject_below: Leave a picture undecided whose probability is lower.
        views: Which altered views of each picture to average over.

    Yields:
        One entry a picture; unreadable ones carry their error.
    """
    stream = iter(pictures)
    networks = [network_of(member) for member in members]
    while batch := list(islice(stream, batch_size)):
        pixels = [picture.pixels for picture in batch if picture.pixels is not None]
        vote = None
        if pixels:
            images = torch.from_numpy(np.stack(pixels)).to(members[0].device)
            logits = [
                predict_logits(network, [images], member.header.normalization, views=views).cpu()
                for network, member in zip(networks, members, strict=True)
            ]
            vote = rule(torch.stack(logits).numpy())
        place = 0
        for picture in batch:
            if picture.pixels is None or vote is None:
                yield Labelled(picture.name, picture.index, error=picture.error)
                continue
            yield _label(picture, vote, place, members[0].header.class_names, top, reject_below)
            place += 1


def _label(
    picture: Picture, vote: Vote, place: int, class_names: tuple[str, ...], top: int, reject_below: float
) -> Labelled:
    scores, probabilities, winner = vote.scores[place], vote.probabilities[place], int(vote.labels[place])
    order = sorted(range(len(class_names)), key=lambda k: (k != winner, -scores[k], -probabilities[k]))
    undecided = bool(probabilities[winner] < reject_below)
    return Labelled(
        picture.name,
        picture.index,
        label=None if undecided else class_names[winner],
        probability=float(probabilities[winner]),
        votes=int(vote.votes[place, winner]),
        undecided=undecided,
        top=tuple(ClassProbability(class_names[k], float(probabilities[k])) for k in order[:top]),
    )


def picture_reader(members: Sequence[Checkpoint], invert: Invert) -> PictureReader:
    """Return a reader that fits pictures to these members' input.

    Raises:
        DataError: The members take neither grey nor colour pictures.
    """
    header = members[0].header
    if header.input_shape[0] not in (1, 3):
        raise DataError(f"these members take images of {header.input_shape[0]} channels; pictures have 1 or 3")
    return PictureReader(header.input_shape, header.background, invert)
