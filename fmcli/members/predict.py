"""Predict a split with all members of a pool."""

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from fmcli.choices import Views
from fmcli.ensemble.predictions import Predictions
from fmcli.members.inference import predict_splits
from fmcli.members.member import has_network
from fmcli.members.pool import Pool


class PredictOptions(TypedDict, total=False):
    """Options of `predict_pool`, for functions that pass them on.

    Args:
        data_root: First folder to search for built-in sources.
        labels: File of the true classes for predictions from other tools. Default: the file next to them.
        views: Test-time augmentation of networks: the views of each image to average over.
    """

    data_root: Path | None
    labels: Path | None
    views: Views


def predict_pool(
    pool: Pool,
    split: str,
    *,
    data_root: Path | None = None,
    labels: Path | None = None,
    views: Views = "none",
) -> list[Predictions]:
    """Return each member's predictions on a split, with the names and groups of the pool.

    All networks predict together, so that they share images. All other members load their predictions.

    Args:
        pool: The members.
        split: `train`, `validation` or `test`.
        data_root: See `PredictOptions`.
        labels: See `PredictOptions`.
        views: See `PredictOptions`.

    Raises:
        DataError: Images or stored predictions are missing or damaged, or predictions have no labels.
        CheckpointError: The images have changed since a member was trained.
        NoNetworkError: `views` is set and a member has no network.
    """
    if views != "none":
        pool.require_networks()
    # Predictions from other tools take missing labels and class names from the first predictions.
    order = sorted(range(len(pool.members)), key=lambda index: pool.members[index].count_missing(split, labels))
    networks = {index: member for index, member in enumerate(pool.members) if has_network(member)}
    computed = predict_splits(list(networks.values()), split, data_root=data_root, views=views)
    found = dict(zip(networks, computed, strict=True))
    reference = None
    for index in order:
        if index not in found:
            member = pool.members[index]
            found[index] = member.predict(split, data_root=data_root, labels=labels, reference=reference)
        found[index] = replace(found[index], member=pool.names[index], group=pool.groups[index] or found[index].group)
        reference = reference or found[index]
    return [found[index] for index in range(len(pool.members))]
