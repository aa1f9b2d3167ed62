"""A network in training: its weights and their average, the optimizer and the generators."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.checkpoints.tensors import with_prefix, without_prefix
from fmcli.data import Normalization
from fmcli.data.augment import augment
from fmcli.networks.backbone import Backbone
from fmcli.networks.batch_norm import estimate_batch_norm
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import add_l2_gradients, build_model
from fmcli.networks.dropout import set_dropout_generator
from fmcli.recipe import MemberSpec
from fmcli.recipe.tracing import LayerTrace
from fmcli.recipe.trainer import TrainerSpec
from fmcli.training.cuda_graph import CudaGraphRecorder, GraphedStep, StepOutput
from fmcli.training.optim import (
    WeightAverage,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from fmcli.training.rng import Generators


class Learner:
    """A network in training.

    Args:
        spec: The member's recipe.
        traces: The layers of the network; see `networks.tracing`.
        normalization: Converts pixels to network input.
        generators: The member's generators, not used before.
        device: The training device.
        bf16: Whether to multiply in bfloat16.
        recorder: Records steps as graphs. Default: the result of `choose_recorder`.
    """

    def __init__(
        self,
        spec: MemberSpec,
        traces: Sequence[LayerTrace],
        *,
        normalization: Normalization,
        generators: Generators,
        device: torch.device,
        bf16: bool,
        recorder: CudaGraphRecorder | None = None,
    ) -> None:
        self.spec, self.normalization, self.generators = spec, normalization, generators
        model = build_model(traces, init=spec.model.init, generator=generators.weights)
        self.model: nn.Sequential = model.to(device)
        set_dropout_generator(self.model, generators.dropout)
        self._twin = Bf16Twin(self.model) if bf16 else None
        trainer = spec.trainer
        recorder = recorder or choose_recorder(trainer, device, generators)
        self._graphed_step = None if recorder is None else GraphedStep(recorder)
        self._optimizer = build_optimizer(spec.optimizer, self.model, capturable=recorder is not None)
        # A recipe has at most one of these averages: over all steps, or over the last epochs.
        decay = trainer.weight_average
        self._step_average = None if decay is None else WeightAverage(self.model, decay)
        self._epoch_average = None if trainer.swa is None else WeightAverage(self.model, decay=None)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def random_parameters(self) -> tuple[str, ...]:
        """Names of the parameters with random initial weights, if the other ones come from a file."""
        return tuple(name for module in self.model if isinstance(module, Backbone) for name in module.initialized)

    @property
    def max_weight(self) -> float:
        """Largest absolute value of a weight; NaN or infinity if any weight is not finite."""
        return float(torch.stack([parameter.detach().abs().max() for parameter in self.model.parameters()]).max())

    def step(self, images: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take one optimizer step.

        Args:
            images: uint8 (N, C, H, W) on the device.
            labels: int64 (N,) on the device.
            lr: Learning rate.

        Returns:
            The mean cross-entropy and the logits, without gradients. The next step may overwrite them.
        """
        set_learning_rate(self._optimizer, lr)
        if self._graphed_step is None:
            loss, logits = self._update_weights(images, labels)
        else:
            loss, logits = self._graphed_step(self._update_weights, images, labels)
        if self._step_average is not None:
            self._step_average.update()
        return loss, logits

    def _update_weights(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Compute gradients and update the weights. A CUDA graph may record this function: see `GraphedStep`."""
        trainer = self.spec.trainer
        inputs = self.normalization(augment(images, self.spec.augment, self.generators.augment))
        self._optimizer.zero_grad(set_to_none=True)
        logits = (self.model if self._twin is None else self._twin)(inputs).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=trainer.label_smoothing)
        loss.backward()
        if self._twin is not None:
            self._twin.collect_gradients()
        add_l2_gradients(self.model)
        if trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), trainer.clip_norm)
        self._optimizer.step()
        return loss.detach(), logits.detach()

    def averages(self, epoch: int) -> bool:
        """Return whether the weights after an epoch are part of the average of the last epochs (`trainer.swa`).

        Args:
            epoch: Index of the epoch, from 0.
        """
        trainer = self.spec.trainer
        return epoch >= trainer.epochs - trainer.averaged_epochs

    def end_epoch(self, epoch: int, batches: Iterable[Tensor]) -> None:
        """If the recipe averages the last epochs, add the weights to the average; after the last epoch, switch to it.

        Args:
            epoch: Index of the epoch that ends, from 0.
            batches: The training images, uint8 (N, C, H, W), for the batch norm statistics of the averaged weights.
        """
        if self._epoch_average is None or not self.averages(epoch):
            return
        self._epoch_average.update()
        if epoch == self.spec.trainer.epochs - 1:
            self._epoch_average.swap()
            estimate_batch_norm(self.model, batches, self.normalization, dropout=True)

    def evaluated(self) -> AbstractContextManager[None]:
        """Return a context manager in which the network has the weights to evaluate and save."""
        return nullcontext() if self._step_average is None else self._step_average.applied()

    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights to evaluate and save, by name."""
        with self.evaluated():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    # --- resuming -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return everything that changes during training, for `load`."""
        tensors = with_prefix("model", self.model.state_dict()) | self.generators.state()
        tensors |= with_prefix("optimizer", optimizer_state(self._optimizer))
        average = self._step_average or self._epoch_average
        return tensors if average is None else tensors | with_prefix("average", average.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors that `state` returned in an earlier process.

        Call before the first step: a recorded CUDA graph would keep using the old tensors.
        """
        self.model.load_state_dict(without_prefix("model", tensors))
        load_optimizer_state(self._optimizer, without_prefix("optimizer", tensors))
        self.generators.load(tensors)
        average = self._step_average or self._epoch_average
        if average is not None:
            average.load_state_dict(without_prefix("average", tensors))


def choose_recorder(trainer: TrainerSpec, device: torch.device, generators: Generators) -> CudaGraphRecorder | None:
    """Return the recorder of CUDA graphs if the recipe asks for them on an NVIDIA GPU, or None for eager steps.

    Args:
        trainer: The recipe's `[trainer]` table.
        device: The training device.
        generators: The member's generators.
    """
    if not trainer.cuda_graph or device.type != "cuda":
        return None
    return CudaGraphRecorder(device, [generators.augment, generators.dropout])
