"""Modules of a network that PyTorch does not have, and the walk through nested modules."""

from collections.abc import Iterator

from torch import Tensor, nn

from fmcli.networks.backbone import Backbone
from fmcli.networks.dropout import StochasticDepth


class ChannelsLastFlatten(nn.Flatten):
    """Flatten by rows, columns and channels, as Keras does. Images have this memory order, so nothing is copied."""

    def forward(self, images: Tensor) -> Tensor:
        """Flatten (N, C, H, W), or return (N, n_features) unchanged."""
        return images.permute(0, 2, 3, 1).flatten(1) if images.ndim == 4 else images


class SqueezeExcite(nn.Module):
    """Scale each channel by a number from 0 to 1 that depends on the means of all channels.

    Args:
        channels: Number of channels.
        units: Number of units of the first dense layer.
    """

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            ChannelsLastFlatten(),
            nn.Linear(channels, units),
            nn.ReLU(),
            nn.Linear(units, channels),
            nn.Sigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scale the channels of (N, C, H, W)."""
        scale: Tensor = self.gate(images)
        return images * scale[:, :, None, None]


class Residual(nn.Module):
    """Add the input of a body, changed by the shortcut, to its output.

    Args:
        body: The inner layers.
        shortcut: Gives the input the shape of the body's output. Without layers, the input is added unchanged.
        depth: Skips the body for random images during training.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential, depth: StochasticDepth) -> None:
        super().__init__()
        self.body, self.shortcut, self.depth = body, shortcut, depth

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum for (N, …)."""
        outputs: Tensor = self.shortcut(inputs) + self.depth(self.body(inputs))
        return outputs


def walk_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all modules inside it, depth first, but no module inside a backbone.

    A backbone initialises its own weights and chooses their precision.
    """
    yield module
    if not isinstance(module, Backbone):
        for child in module.children():
            yield from walk_modules(child)


def has_products(module: nn.Module) -> bool:
    """Return whether a module is a convolution or a dense layer, which multiply in bfloat16 in mixed precision."""
    return isinstance(module, nn.Conv2d | nn.Linear)
