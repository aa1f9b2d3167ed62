"""Validate a network with the weights that a checkpoint would have."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.events import BatchPredicted
from fmcli.networks.inference import InferenceNetwork, predict_logits
from fmcli.training.learner import Learner
from fmcli.training.member_setup import MemberSetup


@dataclass(frozen=True, slots=True)
class Validation:
    """Results on the validation images; all are None if there are no such images.

    Args:
        logits: float32 (n_samples, n_classes), on the CPU.
        loss: Mean cross-entropy in nats.
        accuracy: In [0, 1].
    """

    logits: Tensor | None = None
    loss: float | None = None
    accuracy: float | None = None


class Validator:
    """Compute the logits of a member's network on the validation images.

    Args:
        setup: The member.
    """

    def __init__(self, setup: MemberSetup) -> None:
        self._setup = setup

    def validate(self, learner: Learner) -> Validation:
        """Return the results with the weights that a checkpoint would have."""
        with learner.evaluated():
            logits = self.predict(learner.model)
        if logits is None:
            return Validation()
        labels = torch.from_numpy(self._setup.splits.named("validation").labels)
        accuracy = float((logits.argmax(dim=1) == labels).double().mean())
        return Validation(logits, float(F.cross_entropy(logits, labels)), accuracy)

    def predict(self, model: nn.Sequential) -> Tensor | None:
        """Return the logits with the current weights of a network."""
        loaders = self._setup.loaders
        if loaders.validation is None:
            return None
        network = InferenceNetwork(model, bf16=self._setup.bf16)
        return predict_logits(network, self.reported(loaders.validation.batches()), loaders.normalization).cpu()

    def reported(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield batches, and report each one after the network has processed it."""
        for images in batches:
            yield images
            self._setup.reporter(BatchPredicted(self._setup.spec.name))
