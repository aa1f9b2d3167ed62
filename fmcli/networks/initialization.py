"""Draw initial weights from an explicit generator."""

import math

import torch
from torch import nn

from fmcli.recipe.layers import Initialization


def initialize_layer(module: nn.Conv2d | nn.Linear, init: Initialization, generator: torch.Generator) -> None:
    """Draw the kernel and the bias of a layer.

    References:
        Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
        He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    weight, bias = module.weight, module.bias
    match init:
        case "torch":  # the default of nn.Linear and nn.Conv2d, drawn from our generator
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(bias, -bound, bound, generator=generator)
                return
        case "glorot-uniform":
            nn.init.xavier_uniform_(weight, generator=generator)
        case "he-uniform":
            nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
        case "he-normal":
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    if bias is not None:
        nn.init.zeros_(bias)
