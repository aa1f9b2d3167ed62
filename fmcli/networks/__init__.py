"""Build networks, train them in bfloat16, and run them over images.

- `build`: list of layers to network, with initial weights, dropout and L2 gradients
- `bf16`: bfloat16 twin of a network, for training
- `batch_norm`: new batch norm statistics after averaging weights
- `inference`: faster network for prediction; logits of images, with test-time augmentation
- `cpu/`: optional compiled kernels for training on a CPU. `loading` compiles `kernels`; `pooling` and `strided` are the
  layers that use them
"""

from fmcli.networks.batch_norm import estimate_batch_norm
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import Dropout, add_l2_gradients, build_model, set_dropout_generator
from fmcli.networks.inference import (
    InferenceNetwork,
    disable_tf32,
    predict_all_logits,
    predict_logits,
)

__all__ = [
    "Bf16Twin",
    "Dropout",
    "InferenceNetwork",
    "add_l2_gradients",
    "build_model",
    "disable_tf32",
    "estimate_batch_norm",
    "predict_all_logits",
    "predict_logits",
    "set_dropout_generator",
]
