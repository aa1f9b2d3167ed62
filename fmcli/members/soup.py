"""Soups: the weights of several checkpoints of one network averaged into one checkpoint.

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
from fmcli.checkpoints.tensors import weights_digest
from fmcli.choices import SPLITS, SoupMethod
from fmcli.data import Splits, evaluation_loader, load_splits
from fmcli.ensemble.predictions import predictions_file, save_predictions
from fmcli.errors import CheckpointError, UsageError, printable
from fmcli.members import Pool
from fmcli.members.inference import check_images, network_of, predict_splits
from fmcli.networks import estimate_batch_norm, predict_logits
from fmcli.recipe import recipe_digest

_FILES = frozenset({MODEL_FILE, *map(predictions_file, SPLITS)})
"""All that a soup's folder holds."""


@dataclass(frozen=True, slots=True)
class Soup:
    """Weights that were averaged.

    Args:
        folder: Where their checkpoint is.
        members: The names of those that went in, in the order that they did.
        accuracy: Of the soup on the validation images; None without any.
        best_member: The best single member's there, likewise.
    """

    folder: Path
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
    """Average the weights of members whose networks are alike, and save the result as a checkpoint.

    The statistics of batch normalisation are taken from the training images again.

    Args:
        pool: The members.
        folder: A member's folder, to be made.
        method: `uniform` takes all; `greedy` takes them from the best to the worst on validation images, and leaves
            out each that would make the soup worse: at worst it is the best member alone.
        overwrite: Replace a soup that is in the folder.
        data_root: Where to look first for built-in sources.

    Returns:
        What went in, and how it did.

    Raises:
        UsageError: The folder holds something else; there is one member only, networks or images differ; or `greedy`
            has no validation images.
        CheckpointError: The images are no longer those that the members were trained with.
        FmcliError: The folder cannot be written.
    """
    check_soup_folder(folder, overwrite=overwrite)
    members = pool.networks()
    _check_alike(members, pool.names)
    header = members[0].header
    splits = load_splits(header.data, data_root)
    for split, images in splits.present().items():
        check_images(members[0], split, images)
    judged = splits.validation is not None
    if method == "greedy" and not judged:
        raise UsageError("a greedy soup needs validation images, and these members have none", hint="--method uniform")
    alone = [_accuracy(member, splits) for member in members] if judged else []
    order = sorted(range(len(members)), key=lambda place: -alone[place] if alone else 0)
    best: float | None
    if method == "uniform":
        taken, soup = order, _average([members[place] for place in order], splits)
        best = _accuracy(soup, splits) if judged else None
    else:
        taken, soup, best = _add_while_better(members, order, alone[order[0]], splits)
    names = tuple(pool.names[place] for place in taken)
    _save(folder, _with_origin(soup, [members[place] for place in taken], names, method), data_root)
    return Soup(folder, names, best, max(alone, default=None))


def check_soup_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that holds anything, but for a soup that is to be replaced.

    Raises:
        UsageError: It does, or is a file.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    of_soup = _holds_soup_alone(folder)
    if of_soup and overwrite:
        return
    raise UsageError(
        f"{printable(folder)} holds {'a soup' if of_soup else 'something'} already",
        hint="--overwrite replaces it; or choose another folder with --output"
        if of_soup
        else "a soup gets a folder of its own: choose another with --output",
    )


def _holds_soup_alone(folder: Path) -> bool:
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= _FILES:
        return False
    try:
        return read_header(folder).soup is not None
    except CheckpointError:
        return False


def _add_while_better(
    members: Sequence[Checkpoint],
    order: Sequence[int],
    best: float,
    splits: Splits,
) -> tuple[list[int], Checkpoint, float]:
    """Return the places that a greedy soup takes, the soup, and its accuracy on validation images.

    Args:
        members: All of them.
        order: Their places, from the best to the worst.
        best: How accurate the first of these is.
        splits: The images.
    """
    taken, soup = [order[0]], members[order[0]]
    for place in order[1:]:
        tried = _average([members[other] for other in (*taken, place)], splits)
        accuracy = _accuracy(tried, splits)
        if accuracy >= best:
            taken, soup, best = [*taken, place], tried, accuracy
    return taken, soup, best


def _check_alike(members: Sequence[Checkpoint], names: Sequence[str]) -> None:
    if len(members) < 2:
        raise UsageError("a soup needs two members or more", hint="name several checkpoints of one network")
    first = members[0].header
    for member, name in zip(members[1:], names[1:], strict=True):
        other = member.header
        for what, differs in (
            ("network", other.member.model != first.member.model),
            ("training images", other.data_digests != first.data_digests or other.data != first.data),
            ("scale of pixels", (other.mean, other.std) != (first.mean, first.std)),
        ):
            if differs:
                raise UsageError(
                    f"{printable(name)} has another {what} than {printable(names[0])}: weights cannot be averaged",
                    hint="fmcli ensemble evaluate lets different networks vote",
                )


def _accuracy(member: Checkpoint, splits: Splits) -> float:
    images = splits.named("validation")
    loader = evaluation_loader(images, member.device)
    normalization = member.header.normalization_of("validation")
    logits = predict_logits(network_of(member), loader.batches(), normalization).cpu().numpy()
    return float((logits.argmax(axis=1) == images.labels).mean())


def _average(members: Sequence[Checkpoint], splits: Splits) -> Checkpoint:
    """Return a checkpoint, not saved yet, of the mean weights."""
    states = [member.model.state_dict() for member in members]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    soup = build_checkpoint(members[0].path, members[0].header, mean, device=members[0].device)
    batches = evaluation_loader(splits.train, soup.device).batches()
    # A soup is only evaluated, so its statistics are those without dropout.
    estimate_batch_norm(soup.model, batches, soup.header.normalization, dropout=False)
    return soup


def _with_origin(
    soup: Checkpoint, ingredients: Sequence[Checkpoint], names: Sequence[str], method: SoupMethod
) -> Checkpoint:
    """Return a soup whose header says what it is, and no longer that it is its first ingredient."""
    header = soup.header
    trainer = header.member.trainer.model_copy(update={"keep": "last"})  # there are no snapshots, nor a best epoch
    member = header.member.model_copy(update={"name": "soup", "trainer": trainer})
    entries = tuple(
        Ingredient(name=name, digest=weights_digest(one.model.state_dict()))
        for name, one in zip(names, ingredients, strict=True)
    )
    changes = {
        "member": member,
        "epochs": max(one.header.epochs for one in ingredients),
        "snapshot": None,
        "recipe_digest": recipe_digest(member, header.data),
        "versions": versions(),
        "soup": SoupOrigin(method=method, ingredients=entries),
    }
    return replace(soup, header=header.model_copy(update=changes))


def _save(folder: Path, soup: Checkpoint, data_root: Path | None) -> None:
    for split in SPLITS:  # of a soup that is replaced
        (folder / predictions_file(split)).unlink(missing_ok=True)
    if "validation" in soup.header.data_digests:
        [predictions] = predict_splits([soup], "validation", data_root=data_root)
        save_predictions(folder / predictions_file("validation"), predictions)
    save_checkpoint(folder / MODEL_FILE, soup.model, soup.header)
