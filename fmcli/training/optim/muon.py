"""The optimizer Muon, which orthogonalizes the momentum of each kernel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from fmcli.recipe.optimizer import MuonSpec

_ADAMW_UPDATE_RMS = 0.2  # root mean square of an AdamW update divided by the learning rate (Liu et al.)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's polynomial, chosen to be steep at zero
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """SGD with orthogonalized momentum, so that all directions of a kernel learn equally fast.

    A kernel is treated as a matrix: one row per filter. AdamW trains the last kernel, which computes the logits, and
    all biases and normalization weights. Muon and AdamW updates are scaled to the same size, so that one learning rate
    fits both. (`torch.optim.Muon`, since torch 2.9, accepts matrices only, not convolution kernels.)

    Args:
        kernels: Parameters with at least two dimensions, in the order of the layers.
        vectors: Parameters with at most one dimension.
        spec: The recipe's `[optimizer]` table.
        lr: Learning rate; a float32 tensor () if a CUDA graph will record steps.

    References:
        Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in neural
        networks", 2024; the scale is from Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self, kernels: list[nn.Parameter], vectors: list[nn.Parameter], spec: MuonSpec, *, lr: float | Tensor
    ) -> None:
        groups = [
            {"params": kernels[:-1], "weight_decay": spec.weight_decay, "orthogonal": True},
            {"params": kernels[-1:], "weight_decay": spec.weight_decay, "orthogonal": False},
            {"params": vectors, "weight_decay": 0.0, "orthogonal": False},
        ]
        defaults = {"lr": lr, "momentum": spec.momentum, "betas": spec.betas, "eps": spec.eps, "fused": True}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no caller passes a closure
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            trained = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                self._step_orthogonal(group, trained)
            elif trained:
                self._step_adamw(group, trained)

    def _step_orthogonal(self, group: dict[str, Any], trained: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, gradient in trained:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            ahead = gradient.lerp(state["momentum"], group["momentum"])  # Nesterov momentum
            update = orthogonalized(ahead.flatten(1))
            # The root mean square of an orthogonal matrix is 1 / sqrt(max(shape)).
            size = _ADAMW_UPDATE_RMS * max(update.shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(update.view_as(parameter) * (group["lr"] * size))

    def _step_adamw(self, group: dict[str, Any], trained: list[tuple[nn.Parameter, Tensor]]) -> None:
        for parameter, _ in trained:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter, _ in trained]
        adamw(
            [parameter for parameter, _ in trained],
            [gradient for _, gradient in trained],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],  # `load_state_dict` also reads it, to move the state to the device
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return approximately the nearest matrix whose singular values are all 1: U V^T of U S V^T.

    Five steps of a Newton-Schulz iteration bring the singular values into about [0.7, 1.2], which is close enough for
    training. Singular values far below the largest (a thousandth) stay below 1.

    Args:
        matrix: (m, n), floating point.

    Returns:
        (m, n). A matrix of zeros stays zero.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    # Each step multiplies by a polynomial of wide @ wide.T. These factors are small, so they are multiplied first.
    gram = wide @ wide.T
    factor = product = _factor(gram)
    for _ in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    wide = product @ wide
    transposed: Tensor = wide.T
    return wide if matrix.shape[0] <= matrix.shape[1] else transposed


def _factor(gram: Tensor) -> Tensor:
    """Return the factor of one iteration: a I + b G + c G²."""
    a, b, c = _COEFFICIENTS
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor
