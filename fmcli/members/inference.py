"""From checkpoints and images to predictions: a split for evaluation, or image files."""

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
from fmcli.ensemble.rules import Vote
from fmcli.errors import CheckpointError, DataError, printable
from fmcli.hardware.device import use_bf16
from fmcli.networks import InferenceNetwork, predict_all_logits
from fmcli.recipe.families import kernel_group

_MOST_NAMED = 5  # classes, in an error


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
    names = name_members(members)
    alike: dict[str, list[int]] = {}  # members' places, by their images
    for place, member in enumerate(members):
        alike.setdefault(member.header.data.model_dump_json(), []).append(place)
    found: dict[int, Predictions] = {}
    for places in alike.values():
        images = load_splits(members[places[0]].header.data, data_root).named(split)
        some, their_names = [members[place] for place in places], [names[place] for place in places]
        found |= zip(places, _predict_split(some, their_names, split, images, views), strict=True)
    return [found[place] for place in range(len(members))]


def check_images(member: Checkpoint, split: str, images: ImageSet) -> str:
    """Return the digest of images, refusing those that a member was not trained with.

    Raises:
        CheckpointError: They have other classes, another size or another digest.
    """
    header = member.header
    differences = list(_differences(header, images))
    if differences:
        raise CheckpointError(
            f"{printable(member.path)} was trained on other images than {printable(header.data.source)} now has: "
            f"{'; '.join(differences)}",
            hint="bring the data back, or train again",
        )
    digest = images.digest
    if digest != header.data_digests.get(split, digest):
        raise CheckpointError(
            f"the {split} images of {printable(header.data.source)} are not those that "
            f"{printable(member.path)} was trained with (SHA-256 {digest[:12]}, was {header.data_digests[split][:12]})",
            hint="bring the data back, or train again",
        )
    return digest


def _differences(header: Header, images: ImageSet) -> Iterator[str]:
    """Yield how images differ in shape and classes from those that a member was trained on."""
    if images.input_shape != header.input_shape:
        yield f"they are {images.input_shape}, and were {header.input_shape}"
    before, now = header.class_names, images.class_names
    for word, names in (
        ("without", [name for name in before if name not in now]),
        ("with", [name for name in now if name not in before]),
    ):
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            yield f"{word} the class{'es' * (len(names) > 1)} {printable(', '.join(names[:_MOST_NAMED]))}{more}"
    if before != now and set(before) == set(now):
        yield "the classes in another order"


def _predict_split(
    members: Sequence[Checkpoint], names: Sequence[str], split: str, images: ImageSet, views: Views
) -> Iterator[Predictions]:
    """Yield what members on one device answer to the same images, in one pass over these."""
    digests = [check_images(member, split, images) for member in members]
    loader = evaluation_loader(images, members[0].device)
    networks = [(network_of(member), member.header.normalization_of(split)) for member in members]
    answers = predict_all_logits(networks, loader.batches(), views=views)
    for member, name, digest, logits in zip(members, names, digests, answers, strict=True):
        if not bool(torch.isfinite(logits).all()):
            raise CheckpointError(
                f"{printable(name)} answers with NaN or infinity on {split}: its weights are no good",
                hint="train it again, or leave it out",
            )
        yield Predictions(
            logits=logits.cpu().numpy(),
            labels=images.labels,
            class_names=member.header.class_names,
            member=name,
            split=split,
            data_digest=digest,
            recipe_digest=member.header.recipe_digest,
            group=kernel_group(member.header.member.model),
        )


def network_of(member: Checkpoint) -> InferenceNetwork:
    """Return a member's network to answer with, in the precision that its recipe trains in on its device."""
    return InferenceNetwork(member.model, bf16=use_bf16(member.header.member.trainer.precision, member.device))


def name_members(members: Sequence[Checkpoint]) -> list[str]:
    """Return a name for each member: its own, with its run's or its whole path where several have the same."""
    own = [member.header.name for member in members]
    return make_names_unique(own, [member.path for member in members])


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
    """Label images by the vote of all members, in order, reading only one batch ahead.

    Args:
        members: Loaded checkpoints that match; one is an ensemble of one.
        images: Images read by an `ImageReader` that was made for these members.
        rule: How to combine them.
        top: How many classes to name for each image.
        batch_size: How many images go through the networks at once.
        reject_below: Leave an image undecided whose probability is lower.
        views: Which altered views of each image to average over.

    Yields:
        One entry per image; the entry of an unreadable image has its error.
    """
    stream = iter(images)
    networks = [(network_of(member), member.header.normalization) for member in members]
    while batch := list(islice(stream, batch_size)):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        vote = None
        if pixels:
            inputs = torch.from_numpy(np.stack(pixels)).to(members[0].device)
            vote = rule(torch.stack(predict_all_logits(networks, [inputs], views=views)).cpu().numpy())
        place = 0
        for image in batch:
            if image.pixels is None or vote is None:
                yield ImagePrediction(image.name, image.index, error=image.error)
                continue
            yield _label(image, vote, place, members[0].header.class_names, top, reject_below)
            place += 1


def _label(
    image: LoadedImage, vote: Vote, place: int, class_names: tuple[str, ...], top: int, reject_below: float
) -> ImagePrediction:
    scores, probabilities, winner = vote.scores[place], vote.probabilities[place], int(vote.labels[place])
    order = sorted(range(len(class_names)), key=lambda k: (k != winner, -scores[k], -probabilities[k]))
    undecided = bool(probabilities[winner] < reject_below)
    return ImagePrediction(
        image.name,
        image.index,
        label=None if undecided else class_names[winner],
        probability=float(probabilities[winner]),
        votes=int(vote.votes[place, winner]),
        undecided=undecided,
        top=tuple(ClassProbability(class_names[k], float(probabilities[k])) for k in order[:top]),
    )


def image_reader(members: Sequence[Checkpoint], invert: Invert) -> ImageReader:
    """Return a reader that fits image files to the input of these members.

    Raises:
        DataError: The members take neither grey nor colour images.
    """
    header = members[0].header
    if header.input_shape[0] not in (1, 3):
        raise DataError(f"these members take images of {header.input_shape[0]} channels; image files have 1 or 3")
    return ImageReader(header.input_shape, header.background, invert)
