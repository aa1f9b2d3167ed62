"""Estimate the statistics of batch norm again after weights were averaged."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fmcli.networks.inference import Normalize


@torch.no_grad()
def estimate_batch_norm(model: nn.Module, batches: Iterable[Tensor], normalize: Normalize, *, dropout: bool) -> None:
    """Set the running statistics of all batch norm layers to their mean over batches.

    Args:
        model: A network. One without batch norm is left unchanged, and no batch is read.
        batches: Training images, uint8 (N, C, H, W), on the network's device.
        normalize: Converts pixels to network input.
        dropout: Keep dropout active. The variances then match training, but not evaluation (Li, Chen, Hu and Yang,
            "Understanding the disharmony between dropout and batch normalization by variance shift", CVPR 2019).
    """
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not layers:
        return
    was_training = model.training
    model.train(dropout)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch then keeps a cumulative mean, in which all batches count equally
        layer.train()
    for index, images in enumerate(batches):
        if index == 0 or len(images) > 1:  # skip a final batch of one image: batch norm needs a variance
            model(normalize(images))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.train(was_training)
