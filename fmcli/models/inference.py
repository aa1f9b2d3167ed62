"""From a network and images to logits."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def predict_logits(
    model: nn.Module,
    batches: Iterable[Tensor],
    normalize: Callable[[Tensor], Tensor],
    *,
    bf16: bool = False,
) -> Tensor:
    """Run a network over images, without augmentation, dropout or gradients.

    Args:
        model: From (N, C, H, W) to logits; its training mode is put back afterwards.
        batches: uint8 (N, C, H, W), on the network's device.
        normalize: From pixels to network input.
        bf16: Multiply in bfloat16: faster where the device does that natively, and less exact.

    Returns:
        float32 (n_samples, n_classes), on that device.
    """
    training = model.training
    model.eval()
    logits: list[Tensor] = []
    with torch.inference_mode():
        for images in batches:
            with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits.append(model(normalize(images)).float())
    model.train(training)
    return torch.cat(logits)
