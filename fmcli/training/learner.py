"""A network in training: its weights and their average, the optimizer and the generators."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.checkpoints.tensors import flatten_state, unflatten_state, with_prefix, without_prefix
from fmcli.data import Normalization
from fmcli.data.augment import augment
from fmcli.networks.batch_norm import estimate_batch_norm
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import add_l2_gradients, build_model, set_dropout_generator
from fmcli.recipe import MemberSpec
from fmcli.recipe.families import expand_layers
from fmcli.recipe.trainer import TrainerSpec
from fmcli.training.cuda_graph import CudaGraphRecorder, GraphedStep, GraphRecorder, StepOutput
from fmcli.training.optim import WeightAverage, build_optimizer, set_learning_rate
from fmcli.training.rng import Generators


class Learner:
    """A network in training.

    Args:
        spec: The member's recipe.
        input_shape: (C, H, W) of an image.
        n_classes: Number of logits.
        normalization: From pixels to network input.
        generators: New generators on the device.
        device: The training device.
        bf16: Whether to multiply in bfloat16.
        recorder: Records steps as graphs; by default the one that `choose_recorder` returns.
    """

    def __init__(
        self,
        spec: MemberSpec,
        input_shape: tuple[int, int, int],
        n_classes: int,
        *,
        normalization: Normalization,
        generators: Generators,
        device: torch.device,
        bf16: bool,
        recorder: GraphRecorder | None = None,
    ) -> None:
        self.spec, self.normalization, self.generators = spec, normalization, generators
        self.device = device
        model = build_model(
            expand_layers(spec.model, n_classes, input_shape),
            input_shape,
            n_classes,
            init=spec.model.init,
            generator=generators.weights,
        )
        self.model: nn.Sequential = model.to(device)
        set_dropout_generator(self.model, generators.dropout)
        self._twin = Bf16Twin(self.model) if bf16 else None
        trainer = spec.trainer
        recorder = recorder or choose_recorder(trainer, device, generators)
        self._graphed_step = None if recorder is None else GraphedStep(recorder)
        self._optimizer = build_optimizer(spec.optimizer, self.model, capturable=recorder is not None)
        self._step_average = (
            None if trainer.weight_average is None else WeightAverage(self.model, trainer.weight_average)
        )
        self._epoch_average = None if trainer.swa is None else WeightAverage(self.model, None)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def max_weight(self) -> float:
        """Largest absolute value of a weight; not finite if any weight is not."""
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
        """Return whether the weights after an epoch enter the average of the last epochs (`trainer.swa`).

        Args:
            epoch: Index of the epoch, from 0.
        """
        trainer = self.spec.trainer
        return trainer.swa is not None and epoch >= trainer.epochs - trainer.averaged_epochs

    def end_epoch(self, epoch: int, batches: Iterable[Tensor]) -> None:
        """Add the weights to the average of the last epochs, if the recipe has one; after the last epoch, use it.

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

    @property
    def _average(self) -> WeightAverage | None:
        return self._step_average or self._epoch_average

    @property
    def updates(self) -> int:
        """Number of updates of the weight average."""
        return 0 if self._average is None else self._average.updates

    def state(self) -> dict[str, Tensor]:
        """Return everything that changes during training, except `updates`, for `load`."""
        tensors = with_prefix("model", self.model.state_dict()) | self.generators.state()
        tensors |= flatten_state(self._optimizer.state_dict()["state"], "optimizer")
        return tensors if self._average is None else tensors | with_prefix("average", self._average.state_dict())

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Restore the tensors that `state` returned in an earlier process.

        Call before the first step: a recorded CUDA graph would keep using the old tensors.

        Args:
            tensors: The tensors by name.
            updates: Number of updates of the weight average.
        """
        self.model.load_state_dict(without_prefix("model", tensors))
        state = self._optimizer.state_dict()
        moments = self._match_memory_layout(unflatten_state(tensors, "optimizer"))
        self._optimizer.load_state_dict({**state, "state": moments})
        self.generators.load(tensors)
        if self._average is not None:
            self._average.load_state_dict(without_prefix("average", tensors), updates)

    def _match_memory_layout(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Give moments the memory layout of their weights, because fused optimizers iterate over both in order."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return {
            index: {
                name: torch.empty_like(parameters[index]).copy_(tensor)
                if tensor.shape == parameters[index].shape
                else tensor
                for name, tensor in table.items()
            }
            for index, table in state.items()
        }


def choose_recorder(trainer: TrainerSpec, device: torch.device, generators: Generators) -> GraphRecorder | None:
    """Return the recorder of CUDA graphs if the recipe asks for them on an NVIDIA GPU, or None for eager steps.

    Args:
        trainer: The recipe's `[trainer]` table.
        device: The training device.
        generators: The member's generators.
    """
    if not trainer.cuda_graph or device.type != "cuda":
        return None
    return CudaGraphRecorder(device, [generators.augment, generators.dropout])
