"""Make a soup: average the weights of several checkpoints of the same network into one checkpoint.

References:
    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", ICML 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import (
    Checkpoint,
    Ingredient,
    SoupOrigin,
    build_checkpoint,
    read_header,
    save_checkpoint,
    versions,
)
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import SPLITS, SoupMethod
from fmcli.data import Splits, evaluation_loader, load_splits
from fmcli.ensemble.predictions import predictions_file, save_predictions
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members.inference import check_images
from fmcli.members.network import NetworkMember, inference_network
from fmcli.members.pool import Pool
from fmcli.networks.batch_norm import estimate_batch_norm
from fmcli.networks.inference import predict_logits
from fmcli.recipe import recipe_digest

_FILES = frozenset({MODEL_FILE, *map(predictions_file, SPLITS)})
"""Names of the files that a soup's folder can have."""


@dataclass(frozen=True, slots=True)
class Soup:
    """Result of making a soup.

    Args:
        members: Names of the averaged members, in the order in which they were added.
        accuracy: Accuracy of the soup on the validation images; None without validation images.
        best_member: Accuracy of the best single member on the validation images; None without them.
    """

    members: tuple[str, ...]
    accuracy: float | None
    best_member: float | None


def make_soup(
    pool: Pool,
    folder: Path,
    *,
    method: SoupMethod = "greedy",
    overwrite: bool = False,
    data_root: Path | None = None,
) -> Soup:
    """Average the weights of members with the same network, and save the result as a checkpoint.

    The batch-norm statistics of the average are estimated on the training images.

    Args:
        pool: The members.
        folder: New folder for the checkpoint.
        method: `uniform` averages all members. `greedy` adds members from best to worst validation accuracy, and leaves
            out members that would lower the accuracy of the soup.
        overwrite: Replace a soup in the folder.
        data_root: First folder to search for built-in sources.

    Raises:
        UsageError: The folder is not empty, there is only one member, networks or images differ, or there are no
            validation images for `greedy`.
        CheckpointError: The images have changed since the members were trained.
        FmcliError: The folder cannot be written.
    """
    check_soup_folder(folder, overwrite=overwrite)
    first, *_ = pool.require_networks()
    members = _require_checkpoints(pool)
    _check_same_network(members, pool.names)
    splits = load_splits(first.training.data, data_root)
    for split, images in splits.present().items():
        check_images(first, split, images)
    has_validation = splits.validation is not None
    if method == "greedy" and not has_validation:
        raise UsageError("a greedy soup needs validation images, but these members have none", remedies=["soup-method"])
    accuracies = [_accuracy(member, splits) for member in members] if has_validation else []
    order = sorted(range(len(members)), key=lambda index: -accuracies[index] if accuracies else 0)
    accuracy: float | None
    if method == "uniform":
        added, soup = order, _average([members[index] for index in order], splits)
        accuracy = _accuracy(soup, splits) if has_validation else None
    else:
        added, soup, accuracy = _add_greedily(members, order, accuracies[order[0]], splits)
    names = tuple(pool.names[index] for index in added)
    _save(folder, _with_soup_header(soup, [members[index] for index in added], names, method), data_root)
    return Soup(names, accuracy, max(accuracies, default=None))


def check_soup_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that is not empty.

    Args:
        folder: Folder for a soup.
        overwrite: Accept a folder that has a soup and nothing else.

    Raises:
        UsageError: The folder is not empty, or is a file.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not _has_only_soup(folder):
        raise UsageError(f"cannot write a soup to {printable(folder)}: it is not an empty folder", remedies=["output"])
    if not overwrite:
        raise UsageError(f"{printable(folder)} already has a soup", remedies=["replace", "output"])


def _has_only_soup(folder: Path) -> bool:
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= _FILES:
        return False
    try:
        return read_header(folder).soup is not None
    except CheckpointError:
        return False


def _add_greedily(
    members: Sequence[Checkpoint],
    order: Sequence[int],
    accuracy: float,
    splits: Splits,
) -> tuple[list[int], Checkpoint, float]:
    """Make a greedy soup.

    Args:
        members: All members.
        order: Their indices, from best to worst.
        accuracy: Validation accuracy of the best member.
        splits: The images.

    Returns:
        Indices of the averaged members, the soup, and its validation accuracy.
    """
    added, soup = [order[0]], members[order[0]]
    for index in order[1:]:
        candidate = _average([members[i] for i in (*added, index)], splits)
        candidate_accuracy = _accuracy(candidate, splits)
        if candidate_accuracy >= accuracy:
            added, soup, accuracy = [*added, index], candidate, candidate_accuracy
    return added, soup, accuracy


def _require_checkpoints(pool: Pool) -> list[Checkpoint]:
    """Return the checkpoints of all members: a soup needs weights, not only predictions."""
    checkpoints = [member.checkpoint for member in pool.members if isinstance(member, NetworkMember)]
    if len(checkpoints) < len(pool.members):
        raise UsageError("a soup needs checkpoints, but some members are of another kind", hint="leave them out")
    return checkpoints


def _check_same_network(members: Sequence[Checkpoint], names: Sequence[str]) -> None:
    if len(members) < 2:
        raise UsageError("a soup needs at least two members", hint="give several checkpoints of the same network")
    first = members[0].header
    for member, name in zip(members[1:], names[1:], strict=True):
        other = member.header
        for label, differs in (
            ("a different network", other.member.model != first.member.model),
            ("different images", other.data_digests != first.data_digests or other.data != first.data),
            ("a different mean or std of pixels", (other.mean, other.std) != (first.mean, first.std)),
        ):
            if differs:
                raise UsageError(
                    f"{printable(name)} has {label} from {printable(names[0])}, so their weights cannot be averaged",
                    hint="to combine different networks, use fmcli ensemble evaluate",
                )


def _accuracy(member: Checkpoint, splits: Splits) -> float:
    images = splits.named("validation")
    loader = evaluation_loader(images, member.device)
    normalization = member.header.normalization_of("validation")
    logits = predict_logits(inference_network(member), loader.batches(), normalization).cpu().numpy()
    return float((logits.argmax(axis=1) == images.labels).mean())


def _average(members: Sequence[Checkpoint], splits: Splits) -> Checkpoint:
    """Return a checkpoint with the mean weights. Nothing is written."""
    states = [member.model.state_dict() for member in members]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    soup = build_checkpoint(members[0].path, members[0].header, mean, device=members[0].device)
    batches = evaluation_loader(splits.train, soup.device).batches()
    # A soup is never trained, so its batch-norm statistics must match prediction, which has no dropout.
    estimate_batch_norm(soup.model, batches, soup.header.normalization, dropout=False)
    return soup


def _with_soup_header(
    soup: Checkpoint, ingredients: Sequence[Checkpoint], names: Sequence[str], method: SoupMethod
) -> Checkpoint:
    """Return the soup with its own header instead of the header of its first ingredient."""
    header = soup.header
    trainer = header.member.trainer.model_copy(update={"keep": "last"})  # a soup has no snapshots and no best epoch
    member = header.member.model_copy(update={"name": "soup", "trainer": trainer})
    entries = tuple(
        Ingredient(name=name, digest=ingredient.weights_digest)
        for name, ingredient in zip(names, ingredients, strict=True)
    )
    changes = {
        "member": member,
        "index": None,
        "epochs": max(ingredient.header.epochs for ingredient in ingredients),
        "snapshot": None,
        "recipe_digest": recipe_digest(member, header.data),
        "versions": versions(),
        "soup": SoupOrigin(method=method, ingredients=entries),
    }
    return replace(soup, header=header.model_copy(update=changes))


def _save(folder: Path, soup: Checkpoint, data_root: Path | None) -> None:
    for split in SPLITS:  # remove predictions of the soup that is replaced
        (folder / predictions_file(split)).unlink(missing_ok=True)
    if "validation" in soup.header.data_digests:
        predictions = NetworkMember(soup, folder / MODEL_FILE).predict("validation", data_root=data_root)
        save_predictions(folder / predictions_file("validation"), predictions)
    save_checkpoint(folder / MODEL_FILE, soup.model, soup.header)
