"""Networks: built from a list of layers (`build`), and run over images (`inference`)."""

from fmcli.models.build import Dropout, SamePad, build_model, l2_penalty, set_dropout_generator
from fmcli.models.inference import predict_logits

__all__ = ["Dropout", "SamePad", "build_model", "l2_penalty", "predict_logits", "set_dropout_generator"]
