"""A network as it learns: its weights and their average, the optimizer, and the random numbers that are drawn."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.checkpoints.tensors import flatten_state, unflatten_state, with_prefix, without_prefix
from fmcli.data import Normalization
from fmcli.data.augment import augment
from fmcli.networks import Bf16Twin, add_l2_gradients, build_model, estimate_batch_norm, set_dropout_generator
from fmcli.recipe import MemberSpec
from fmcli.recipe.families import expand_layers
from fmcli.training.cuda_graph import CudaRecorder, Recorder, StepGraph, StepOutput
from fmcli.training.optim import WeightAverage, build_optimizer, set_learning_rate
from fmcli.training.rng import Generators


class Learner:
    """A network as it learns, step by step.

    Args:
        spec: The member's recipe.
        input_shape: (C, H, W).
        n_classes: How many logits it gives.
        normalization: From pixels to its input.
        generators: New ones, on the device.
        device: Where to train.
        bf16: Multiply in bfloat16.
        recorder: How steps are recorded; by default as CUDA graphs on an NVIDIA GPU, and not at all elsewhere.
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
        recorder: Recorder | None = None,
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
        if recorder is None and device.type == "cuda":
            recorder = CudaRecorder(device, [generators.augment, generators.dropout])
        self._graph = None if recorder is None else StepGraph(recorder)
        self._optimizer = build_optimizer(spec.optimizer, self.model, recordable=recorder is not None)
        trainer = spec.trainer
        self._step_average = (
            None if trainer.weight_average is None else WeightAverage(self.model, trainer.weight_average)
        )
        self._epoch_average = None if trainer.swa is None else WeightAverage(self.model, None)

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def largest_weight(self) -> float:
        """The largest absolute value of a weight; not finite where one is not."""
        return float(torch.stack([parameter.detach().abs().max() for parameter in self.model.parameters()]).max())

    def step(self, images: Tensor, labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take one optimizer step.

        Args:
            images: uint8 (N, C, H, W), on the device.
            labels: int64 (N,), on the device.
            lr: The learning rate.

        Returns:
            The mean cross-entropy and the logits, both without gradient.
        """
        set_learning_rate(self._optimizer, lr)
        if self._graph is None:
            loss, logits = self._learn(images, labels)
        else:
            loss, logits = self._graph(self._learn, images, labels)
        if self._step_average is not None:
            self._step_average.update()
        return loss, logits

    def _learn(self, images: Tensor, labels: Tensor) -> StepOutput:
        """Update the weights, and return what `step` does. On a GPU this is recorded: see `StepGraph`."""
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
        """Tell whether an epoch, from 0, is one of the last, after which the recipe averages the weights."""
        trainer = self.spec.trainer
        return trainer.swa is not None and epoch >= trainer.epochs - trainer.averaged_epochs

    def end_epoch(self, epoch: int, batches: Iterable[Tensor]) -> None:
        """Take the weights into the average of the last epochs, where the recipe has one; after the last, adopt it.

        Args:
            epoch: Which one ends, from 0.
            batches: The training images, uint8 (N, C, H, W), to take the statistics of batch normalisation from.
        """
        if self._epoch_average is None or not self.averages(epoch):
            return
        self._epoch_average.update()
        if epoch == self.spec.trainer.epochs - 1:
            self._epoch_average.swap()
            estimate_batch_norm(self.model, batches, self.normalization, dropout=True)

    def evaluated(self) -> AbstractContextManager[None]:
        """Let the network have, for a while, the weights that are to be evaluated and saved."""
        return nullcontext() if self._step_average is None else self._step_average.applied()

    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return a copy of those weights, by name."""
        with self.evaluated():
            return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    # --- resuming -----------------------------------------------------------------------------------------

    @property
    def _average(self) -> WeightAverage | None:
        return self._step_average or self._epoch_average

    @property
    def updates(self) -> int:
        """How often the average took the weights in."""
        return 0 if self._average is None else self._average.updates

    def state(self) -> dict[str, Tensor]:
        """Return all that goes on changing, for `load`; `updates` goes with it."""
        tensors = with_prefix("model", self.model.state_dict()) | self.generators.state()
        tensors |= flatten_state(self._optimizer.state_dict()["state"], "optimizer")
        return tensors if self._average is None else tensors | with_prefix("average", self._average.state_dict())

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take over what `state` returned in an earlier process; before any step, as what is recorded knows it not."""
        self.model.load_state_dict(without_prefix("model", tensors))
        state = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**state, "state": self._laid_out(unflatten_state(tensors, "optimizer"))})
        self.generators.load(tensors)
        if self._average is not None:
            self._average.load_state_dict(without_prefix("average", tensors), updates)

    def _laid_out(self, state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
        """Give moments the memory layout of their weights: fused optimizers walk through both side by side."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return {
            place: {
                name: torch.empty_like(parameters[place]).copy_(tensor)
                if tensor.shape == parameters[place].shape
                else tensor
                for name, tensor in table.items()
            }
            for place, table in state.items()
        }
