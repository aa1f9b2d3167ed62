"""Networks: built from a list of layers (`build`), trained in bfloat16 (`bf16`), run over images (`inference`).

What PyTorch does slowly on a CPU: `pooling` and `strided`, by `kernels`, which `compiled` loads where they can be had.
"""

from fmcli.networks.batch_norm import estimate_batch_norm
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import Dropout, SamePad, add_l2_gradients, build_model, set_dropout_generator
from fmcli.networks.inference import (
    InferenceNetwork,
    convolve_in_fp32,
    predict_logits,
    predict_together,
)

__all__ = [
    "Bf16Twin",
    "Dropout",
    "InferenceNetwork",
    "SamePad",
    "add_l2_gradients",
    "build_model",
    "convolve_in_fp32",
    "estimate_batch_norm",
    "predict_logits",
    "predict_together",
    "set_dropout_generator",
]
