"""Soups: the weights of several checkpoints of one network averaged into one checkpoint.

References:
    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
    inference time", ICML 2022.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from fmcli.checkpoint import MODEL_FILE, Checkpoint, build_checkpoint, save_checkpoint, versions
from fmcli.choices import SoupMethod
from fmcli.data import DeviceLoader, Splits, load_images, split_images
from fmcli.errors import UsageError, printable
from fmcli.inference import predict_splits
from fmcli.pool import Pool
from fmcli.predictions import predictions_file, save_predictions

_BATCH = 500  # images


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
    device: torch.device,
    data_root: Path | None = None,
) -> Soup:
    """Average the weights of members whose networks are alike, and save the result as a checkpoint.

    Args:
        pool: The members.
        folder: A member's folder, to be made.
        method: `uniform` takes all; `greedy` takes them from the best to the worst on validation images, and leaves
            out each that would make the soup worse.
        device: Where to compute. The statistics of batch normalisation are taken from the training images again.
        data_root: Where to look first for built-in sources.

    Returns:
        What went in, and how it did.

    Raises:
        UsageError: There is one member only, networks or images differ, or `greedy` has no validation images.
        FmcliError: The folder cannot be written.
    """
    members = pool.networks()
    _check_alike(members, pool.names)
    if (folder / MODEL_FILE).exists():
        raise UsageError(f"{printable(folder)} holds a checkpoint already", hint="choose another with --output")
    header = members[0].header
    splits = split_images(load_images(header.data, data_root=data_root), header.data)
    judged = splits.validation is not None
    if method == "greedy" and not judged:
        raise UsageError("a greedy soup needs validation images, and these members have none", hint="--method uniform")
    alone = [_accuracy(member, device, data_root) for member in members] if judged else [None] * len(members)
    order = sorted(range(len(members)), key=lambda place: -(alone[place] or 0.0))
    taken = [order[0]] if method == "greedy" else order
    soup = _average([members[place] for place in taken], splits, device)
    best = _accuracy(soup, device, data_root) if judged else None
    for place in order[1:] if method == "greedy" else ():
        tried = _average([members[other] for other in (*taken, place)], splits, device)
        accuracy = _accuracy(tried, device, data_root)
        if best is None or accuracy >= best:
            taken, soup, best = [*taken, place], tried, accuracy
    _save(folder, soup, device, data_root)
    names = tuple(pool.names[place] for place in taken)
    return Soup(folder, names, best, max((one for one in alone if one is not None), default=None))


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


def _accuracy(member: Checkpoint, device: torch.device, data_root: Path | None) -> float:
    [predictions] = predict_splits([member], "validation", device=device, data_root=data_root)
    return float((predictions.choices == predictions.labels).mean())


def _average(members: Sequence[Checkpoint], splits: Splits, device: torch.device) -> Checkpoint:
    """Return a checkpoint, not saved yet, of the mean weights."""
    states = [member.model.state_dict() for member in members]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
    first = members[0]
    header = first.header.model_copy(
        update={
            "member": first.header.member.model_copy(update={"name": "soup"}),
            "snapshot": None,
            "versions": versions(),
            "trained_on": {**first.header.trained_on, "soup": str(len(members))},
        }
    )
    soup = build_checkpoint(first.path, header, mean, device=device)
    if any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in soup.model.modules()):
        loader = DeviceLoader(splits.train, batch_size=_BATCH, device=device)
        update_bn(_inputs(loader, soup), soup.model)
        soup.model.eval()
    return soup


def _inputs(loader: DeviceLoader, soup: Checkpoint) -> Iterator[Tensor]:
    """Yield network inputs, but for a last image by itself: one value has no spread."""
    for place, images in enumerate(loader.batches()):
        if place == 0 or len(images) > 1:
            yield soup.header.normalization(images)


def _save(folder: Path, soup: Checkpoint, device: torch.device, data_root: Path | None) -> None:
    if "validation" in soup.header.data_digests:
        [predictions] = predict_splits([soup], "validation", device=device, data_root=data_root)
        save_predictions(folder / predictions_file("validation"), predictions)
    save_checkpoint(folder / MODEL_FILE, soup.model, soup.header)
