"""The optimizers that a recipe can choose."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fmcli.recipe.optimizer import AdamSpec, AdamWSpec, MuonSpec, OptimizerSpec, SgdSpec
from fmcli.training.optim.muon import Muon

_Kind = TypeVar("_Kind", bound=Optimizer)


def build_optimizer(spec: OptimizerSpec, model: nn.Module, *, capturable: bool = False) -> Optimizer:
    """Return the optimizer of a recipe. Weight decay applies to kernels, not to biases and normalization.

    Args:
        spec: The recipe's `[optimizer]` table.
        model: The network to train.
        capturable: Keep everything that changes between steps on the device, including the learning rate, so that a
            CUDA graph can record a step.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    lr = torch.tensor(spec.lr, device=kernels[0].device) if capturable else spec.lr
    match spec:
        case AdamSpec() | AdamWSpec():  # without weight decay, AdamW is Adam
            groups = _decayed(kernels, vectors, spec.weight_decay if isinstance(spec, AdamWSpec) else 0.0)
            return _lean(torch.optim.AdamW)(
                groups, lr=lr, betas=spec.betas, eps=spec.eps, fused=True, capturable=capturable
            )
        case MuonSpec():
            return _lean(Muon)(kernels, vectors, spec, lr=lr)
        case SgdSpec():
            groups = _decayed(kernels, vectors, spec.weight_decay)
            return _lean(torch.optim.SGD)(groups, lr=lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)


def _decayed(kernels: list[nn.Parameter], vectors: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _lean(kind: type[_Kind]) -> type[_Kind]:
    """Return an optimizer class without decorators that load PyTorch's compiler (130 MiB and a second)."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    lean: type[_Kind] = type(kind.__name__, (kind,), methods)
    return lean


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the moments and step counts of an optimizer as `INDEX.NAME`, with the index of the parameter."""
    return {
        f"{index}.{name}": tensor
        for index, table in optimizer.state_dict()["state"].items()
        for name, tensor in table.items()
        if tensor is not None
    }


def load_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the tensors that `optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        # Fused optimizers iterate over weights and moments in memory order, so give both the same layout.
        restored = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[name] = restored
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
