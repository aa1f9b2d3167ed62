"""The optimizers that a recipe can name."""

from typing import Any

import torch
from torch import nn

from fmcli.optim.muon import Muon
from fmcli.recipe.training import AdamSpec, AdamWSpec, MuonSpec, OptimizerSpec, SgdSpec


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; weight decay reaches kernels, not biases and normalisation."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    match spec:
        case AdamSpec():
            parameters = [*kernels, *others]
            return torch.optim.Adam(parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
        case AdamWSpec():
            groups = _decayed(kernels, others, spec.weight_decay)
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
        case MuonSpec():
            return Muon(kernels, others, spec)
        case SgdSpec():
            groups = _decayed(kernels, others, spec.weight_decay)
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)


def _decayed(kernels: list[nn.Parameter], others: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
