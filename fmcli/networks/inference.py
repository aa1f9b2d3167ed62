"""Compute the logits of images."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmcli.choices import Views
from fmcli.networks.blocks import has_products, walk_modules
from fmcli.networks.folding import fold_batch_norm, index_of_head

Normalize = Callable[[Tensor], Tensor]
"""Convert pixels, uint8 or float (N, C, H, W) in 0 to 255, to network input: float32, channels last."""


def disable_tf32() -> None:
    """Turn off TF32 for convolutions on NVIDIA GPUs: PyTorch's default rounds fp32 factors to 10 bits of mantissa."""
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:
        torch.backends.cudnn.allow_tf32 = False


class InferenceNetwork(nn.Module):
    """A faster copy of a network for prediction: without dropout, and with batch norm folded into weights.

    Batch norm is folded if it directly follows a convolution or a dense layer, also inside residual layers.

    Results differ from the network only by rounding. Measured with `quick` on the 10,000 test images: in fp32,
    logits within 2e-5 and identical labels; in bfloat16, probabilities within 0.06 and at most 16 different labels.

    Args:
        model: From `build_model`. It is copied, so later changes have no effect here.
        bf16: Multiply in bfloat16 up to the head, which stays in fp32, because the logits need more than the two to
            three significant digits of bfloat16. The head starts at the first dense layer that is not inside another
            layer, or else at the last layer with a convolution. A backbone keeps its own classifier in fp32.

    References:
        Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
        CVPR 2018, on folding.
    """

    def __init__(self, model: nn.Sequential, *, bf16: bool = False) -> None:
        super().__init__()
        disable_tf32()
        layers = list(fold_batch_norm(model).children())
        end = index_of_head(layers)
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._body = nn.Sequential(*layers[:end])
        for module in filter(has_products, walk_modules(self._body)):
            module.to(self._dtype)  # batch norm stays in fp32, as PyTorch requires
        self._head = nn.Sequential(*layers[end:])
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Convert network input, float32 (N, C, H, W), to logits, float32 (N, n_classes)."""
        logits: Tensor = self._head(self._body(inputs.to(self._dtype)).float())
        return logits


def predict_logits(
    network: nn.Module,
    batches: Iterable[Tensor],
    normalize: Normalize,
    *,
    views: Views = "none",
) -> Tensor:
    """Compute the logits of images, without gradients.

    Args:
        network: A network in evaluation mode, such as an `InferenceNetwork`.
        batches: uint8 (N, C, H, W), on the network's device.
        normalize: Converts pixels to network input.
        views: Test-time augmentation: the altered views of each image to average over.

    Returns:
        float32 (n_samples, n_classes), on the same device. With several views, the logarithm of the mean probability.
    """
    with torch.inference_mode():
        return torch.cat([mean_logits(network, normalized_views(images, normalize, views)) for images in batches])


def mean_logits(network: nn.Module, inputs: Iterable[Tensor]) -> Tensor:
    """Return the logits of one batch, or the logarithm of the mean probability over several views of it.

    Args:
        network: See `predict_logits`.
        inputs: Network input of each view, as from `normalized_views`.
    """
    logits: list[Tensor] = [network(one) for one in inputs]
    if len(logits) == 1:
        return logits[0]
    return torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))


def normalized_views(images: Tensor, normalize: Normalize, views: Views) -> Iterator[Tensor]:
    """Yield the network input of each view of a batch. It can be used for several networks.

    Args:
        images: uint8 (N, C, H, W).
        normalize: See `predict_logits`.
        views: See `predict_logits`.
    """
    return map(normalize, _views(images, views))


def _views(images: Tensor, views: Views) -> Iterator[Tensor]:
    """Yield the images unchanged, then the requested views: mirrored, shifted diagonally by one pixel, or both.

    Shifts repeat the edge.

    References:
        Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.
    """
    yield images
    if "flip" in views:
        yield images.flip(3)
    if "shift" in views:
        height, width = images.shape[2:]
        padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(images.dtype)
        for down, right in ((0, 0), (2, 2), (0, 2), (2, 0)):
            shifted = padded[:, :, down : down + height, right : right + width]
            yield shifted
            if "flip" in views:
                yield shifted.flip(3)
