"""The interface of a member: a trained network, or predictions without a network.

A new kind of member is one file with a class that has this interface and a function that opens a path. `opening` lists
these functions. No other code depends on the kind of a member.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from fmcli.choices import Views
from fmcli.ensemble.file import EnsembleFile
from fmcli.ensemble.predictions import Predictions
from fmcli.errors import UsageError, printable
from fmcli.recipe.data import DataSpec
from fmcli.recipe.recipe import EnsembleSpec, ReferenceSpec

if TYPE_CHECKING:
    from fmcli.data.background import Background  # its package imports torch, which takes seconds

T = TypeVar("T")


class Member(Protocol):
    """A member of an ensemble. All attributes are read-only."""

    @property
    def name(self) -> str:
        """Name of the member. It need not be unique; a `Pool` has unique names."""

    @property
    def group(self) -> str:
        """Group in a two-level vote; empty if unknown."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order; empty if unknown."""

    @property
    def path(self) -> Path:
        """Folder or file that opens only this member, or the pack that contains it."""

    @property
    def file(self) -> Path:
        """File that identifies the member. In a pack, the file that unpacking would write."""

    @property
    def in_pack(self) -> bool:
        """Whether the member is in a pack, together with other members."""

    @property
    def file_digest(self) -> str:
        """Digest of a network's file, for ensemble files; empty without a network."""

    @property
    def weights_digest(self) -> str:
        """SHA-256 of a network's weights. It does not depend on the file. Empty without a network."""

    @property
    def training(self) -> TrainingFacts | None:
        """Facts about the training of the network; None without a network. See `has_network`."""

    @property
    def splits(self) -> Collection[str]:
        """Names of the splits that the member has images or predictions for."""

    @property
    def is_external(self) -> bool:
        """Whether another tool wrote predictions of the member. They may come without the true classes."""

    def count_missing(self, split: str, labels: Path | None) -> int:
        """Return how much the predictions on a split take from other members: 0 for nothing, otherwise up to 4.

        Args:
            split: `train`, `validation` or `test`.
            labels: File of the true classes for predictions from other tools.
        """

    def predict(
        self,
        split: str,
        *,
        data_root: Path | None = None,
        labels: Path | None = None,
        reference: Predictions | None = None,
    ) -> Predictions:
        """Return the member's predictions on a split.

        To predict with several members, use `predict_pool`: networks then share the images.

        Args:
            split: `train`, `validation` or `test`.
            data_root: First folder to search for built-in sources.
            labels: File of the true classes for predictions from other tools. Default: the file next to them.
            reference: Another member's predictions for the same images, for missing true classes and class names.

        Raises:
            DataError: Images or stored predictions are missing or damaged, or the true classes are unknown.
            CheckpointError: The images have changed since training, or logits are not finite.
        """

    def predict_images(self, batch: ImageBatch, *, views: Views = "none") -> NDArray[np.float32]:
        """Return the logits of a batch of images, float32 (n_samples, n_classes).

        Args:
            batch: The images. Members share results computed from the pixels; see `ImageBatch.derive`.
            views: Test-time augmentation: the views of each image to average over.

        Raises:
            NoNetworkError: The member has no network.
        """


class Network(Member, Protocol):
    """A member with a network, which can predict any image."""

    @property
    def training(self) -> TrainingFacts:
        """Facts about the training of the network."""


def has_network(member: Member) -> TypeGuard[Network]:
    """Return whether a member has a network. Otherwise it only has stored predictions on some splits."""
    return member.training is not None


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Facts about the training of a network, from its file.

    Args:
        data: The recipe's `[data]` table.
        ensemble: The recipe's voting rule.
        reference: The recipe's published results, if any.
        input_shape: (C, H, W).
        background: Background of the training images.
        data_digests: SHA-256 of each split, by name.
        recipe_digest: SHA-256 of the recipe.
        differently_normalized: Splits whose pixels are normalized differently from the training images.
    """

    data: DataSpec
    ensemble: EnsembleSpec
    reference: ReferenceSpec | None
    input_shape: tuple[int, int, int]
    background: Background
    data_digests: Mapping[str, str]
    recipe_digest: str
    differently_normalized: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """A batch of images that several members predict.

    Args:
        pixels: uint8 (N, C, H, W).
        split: Split of the images, which can determine their normalization; empty for other images.
    """

    pixels: NDArray[np.uint8]
    split: str = ""
    _derived: dict[Hashable, Any] = field(default_factory=dict)

    def derive(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return something computed from the pixels, such as normalized pixels. It is computed once for all members.

        Args:
            key: Description of the result. Members that use the same key share the result.
            compute: Computes the result.

        Example:
            >>> batch = ImageBatch(np.full((1, 1, 2, 2), 255, np.uint8))
            >>> first = batch.derive("unit", lambda: batch.pixels / 255)
            >>> batch.derive("unit", lambda: batch.pixels / 255) is first
            True
        """
        if key not in self._derived:
            self._derived[key] = compute()
        found: T = self._derived[key]
        return found


@dataclass(frozen=True, slots=True)
class Opened:
    """The members at a path.

    Args:
        members: The members in order.
        ensemble: Rule, names and groups of the members, if the path is an ensemble file or a pack.
    """

    members: Sequence[Member]
    ensemble: EnsembleFile | None = None

    @property
    def groups(self) -> list[str]:
        """Group of each member in a two-level vote; empty if unknown."""
        return [one.group for one in (self.ensemble or self).members]


class NoNetworkError(UsageError):
    """A member without a network cannot predict images.

    Args:
        name: Name of the member.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{printable(name)} has stored predictions but no network; this command needs networks",
            hint="give checkpoints, a run, or an ensemble of them",
        )
