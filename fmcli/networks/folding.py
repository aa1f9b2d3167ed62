"""Fold batch norm into the weights before it, for prediction."""

from collections.abc import Iterable, Sequence
from copy import deepcopy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fmcli.networks.backbone import Backbone
from fmcli.networks.blocks import walk_modules
from fmcli.networks.dropout import Dropout, StochasticDepth


def fold_batch_norm(model: nn.Sequential) -> nn.Module:
    """Copy a network without dropout, in evaluation mode, with each batch norm folded into the layer before it.

    Batch norm is folded if it directly follows a convolution or a dense layer in an `nn.Sequential`, at any depth.
    """
    random = [module for module in model.modules() if isinstance(module, Dropout | StochasticDepth)]
    generators = {id(module.generator): module.generator for module in random}
    return _fold(deepcopy(model, memo=generators).eval())  # generators are not copied, as some devices cannot


def _fold(module: nn.Module) -> nn.Module:
    """Fold inside a module, which is changed, and return the module that replaces it."""
    if isinstance(module, Backbone):
        module.fold()
        return module
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return nn.Sequential(*_fold_sequence(module.children())) if isinstance(module, nn.Sequential) else module


def _fold_sequence(layers: Iterable[nn.Module]) -> list[nn.Module]:
    folded: list[nn.Module] = []
    for layer in layers:
        before = folded[-1] if folded else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            folded[-1] = fuse_linear_bn_eval(before, layer)
        elif not isinstance(layer, Dropout):
            folded.append(layer)
    return folded


def index_of_head(layers: Sequence[nn.Module]) -> int:
    """Return the index of the first layer that stays in fp32: see `InferenceNetwork`."""
    if layers and isinstance(layers[-1], Backbone):
        return len(layers)  # it keeps its own classifier in fp32
    dense = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    convolving = [
        index
        for index, layer in enumerate(layers)
        if any(isinstance(module, nn.Conv2d) for module in walk_modules(layer))
    ]
    return dense[0] if dense else convolving[-1] if convolving else 0
