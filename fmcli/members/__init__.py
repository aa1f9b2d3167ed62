"""Pools of members.

Who a command line names (`places`), what they predict (`predict`), and their predictions on validation images, which
rules learn from and members are chosen by (`validation`).
"""

from fmcli.members.pool import Pool, StoredMember, open_pool
from fmcli.members.predict import neighbours, predict_pool, write_predictions
from fmcli.members.validation import (
    fit_rule,
    predict_for_fitting,
    predict_shared_validation,
    predict_validation,
    vote_on,
)

__all__ = [
    "Pool",
    "StoredMember",
    "fit_rule",
    "neighbours",
    "open_pool",
    "predict_for_fitting",
    "predict_pool",
    "predict_shared_validation",
    "predict_validation",
    "vote_on",
    "write_predictions",
]
