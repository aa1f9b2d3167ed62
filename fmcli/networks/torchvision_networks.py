"""Build networks of torchvision, and adapt them to images of any size and number of channels.

The functions import torchvision, which takes a second, only when they are called.
"""

import inspect
import math
from collections.abc import Mapping
from types import MethodType
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fmcli.errors import did_you_mean, printable
from fmcli.networks.dropout import Dropout, StochasticDepth
from fmcli.recipe.tracing import Shape

SMALL_SIDE = 64  # images with a shorter side below this number of pixels get a different stem
_MIN_PATCHES = 8  # per side of a small image


def build_network(name: str, input_shape: Shape, n_classes: int, generator: torch.Generator) -> nn.Module:
    """Build a network of torchvision.

    Initial weights are torchvision's; a different stem has PyTorch's. The stem is the first convolution, which gets the
    number of channels of the images. If the shorter side of the images is below 64 pixels, it keeps more of their
    resolution:

    - A stem that embeds patches (kernel size = stride) gets patches whose side is the largest power of two for which
      there are at least 8 patches per side: 2×2 pixels for 28×28, 4×4 for 32×32.
    - Any other stem with a stride gets stride 1 and a kernel of at most 3×3 pixels, padded to the size of the image.
      Max-pooling directly after it is removed.
    - All other max-pooling rounds the size of its output up, so that 28 pixels can be halved five times.

    Args:
        name: Name of a classification network in torchvision.
        input_shape: (C, H, W).
        n_classes: Number of logits.
        generator: CPU generator that draws the weights.

    Raises:
        ValueError: There is no such network, or it cannot have this input.

    References:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016: section 4.2 has a 3×3 stem
        with stride 1, without pooling, for images of 32×32 pixels.
        Lee, Lee and Song, "Vision transformer for small-size datasets", arXiv 2112.13492, has small patches.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    with torch.random.fork_rng(devices=()):  # torchvision draws weights from the global generator
        torch.default_generator.manual_seed(seed)
        return _build(name, input_shape, n_classes)


def build_on_meta(name: str, input_shape: Shape, n_classes: int) -> nn.Module:
    """Build a network whose parameters are on the device `meta`. Its buffers, which are small, have memory.

    Raises:
        ValueError: See `build_network`.
    """
    with torch.random.fork_rng(devices=()), _EmptyOnMeta():  # some weights are drawn nevertheless
        return _build(name, input_shape, n_classes)


def build_uninitialized(name: str, input_shape: Shape, n_classes: int) -> nn.Module:
    """Build a network with arbitrary weights, which will be loaded.

    Raises:
        ValueError: See `build_network`.
    """
    network = build_on_meta(name, input_shape, n_classes)
    network._apply(lambda tensor: torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor)
    return network


class _EmptyOnMeta(TorchFunctionMode):
    """Allocate empty tensors, such as all weights of modules, on the device `meta`.

    Within `torch.device("meta")`, all tensors would be there, and regnets could not compute their widths.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        device = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **{**(kwargs or {}), **device})


def check_name(name: str) -> None:
    """Refuse a name that is no classification network in torchvision.

    Raises:
        ValueError: There is no such network.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"got {printable(repr(name))}; {did_you_mean(name, names)}")


def find_stem(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return the name and the module of the first convolution."""
    return next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def find_classifier(network: nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of the last convolution or dense layer."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return layers[-1]


def _build(name: str, input_shape: Shape, n_classes: int) -> nn.Module:
    from torchvision.models import get_model, get_model_builder

    check_name(name)
    channels, height, width = input_shape
    accepted = inspect.signature(get_type_hints(get_model_builder(name))["return"]).parameters
    given = {"aux_logits": False, "init_weights": True, "input_size": (height, width)}
    arguments = {key: value for key, value in given.items() if key in accepted}
    network: nn.Module = get_model(name, weights=None, num_classes=n_classes, **arguments)
    # MNASNet only loads a state with a version, which files do not record. Files have the names of this version.
    vars(network)["_load_from_state_dict"] = MethodType(nn.Module._load_from_state_dict, network)
    _adapt_stem(network, channels, min(height, width))
    _use_seeded_dropout(network)
    return network


def _adapt_stem(network: nn.Module, channels: int, side: int) -> None:
    """Adapt the stem and pooling to images; see `build_network`.

    Args:
        network: The network.
        channels: Number of channels of the images.
        side: Shorter side of the images in pixels.
    """
    name, stem = find_stem(network)
    kernel, stride, padding = stem.kernel_size[0], stem.stride[0], int(stem.padding[0])
    if side < SMALL_SIDE:
        if kernel == stride:
            kernel = stride = min(kernel, 2 ** int(math.log2(max(side // _MIN_PATCHES, 1))))
        elif stride > 1:
            kernel, stride, padding = min(kernel, 3), 1, min(kernel, 3) // 2
            _remove_pooling_after(stem, network)
        for module in network.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
    if (channels, kernel) == (stem.in_channels, stem.kernel_size[0]):
        stem.stride, stem.padding = (stride, stride), (padding, padding)
    else:
        bias = stem.bias is not None
        network.set_submodule(name, nn.Conv2d(channels, stem.out_channels, kernel, stride, padding, bias=bias))
    if hasattr(network, "patch_size"):
        _resize_position_embedding(network, side, kernel)


def _remove_pooling_after(stem: nn.Module, network: nn.Module) -> None:
    """Remove max-pooling that follows a layer directly, or after batch norm and ReLU."""
    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    start = next(index for index, (_, module) in enumerate(leaves) if module is stem) + 1
    name, module = next(leaf for leaf in leaves[start:] if not isinstance(leaf[1], nn.BatchNorm2d | nn.ReLU))
    if isinstance(module, nn.MaxPool2d):
        network.set_submodule(name, nn.Identity())


def _resize_position_embedding(transformer: Any, side: int, patch: int) -> None:
    """Give a vision transformer one position per patch and one for the class token, initialised as in torchvision."""
    transformer.image_size, transformer.patch_size = side, patch
    shape = (1, (side // patch) ** 2 + 1, transformer.hidden_dim)
    transformer.encoder.pos_embedding = nn.Parameter(torch.empty(shape).normal_(std=0.02))


def _use_seeded_dropout(network: nn.Module) -> None:
    """Replace layers that draw from PyTorch's global generator."""
    from torchvision.ops import StochasticDepth as GlobalStochasticDepth

    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Dropout):
            network.set_submodule(name, Dropout(module.p))
        elif isinstance(module, GlobalStochasticDepth):
            network.set_submodule(name, StochasticDepth(module.p))
