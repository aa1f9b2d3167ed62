"""Open the members that paths name, and predict with them.

- `pool`: find and load members; choose their voting rule
- `stored`: members that have stored predictions but no network
- `predict`: predictions of all members on a split
- `inference`: predictions of networks, on a split or on image files
- `validation`: predictions on validation images, for fitting rules and selecting members
- `compose`: new ensembles, by fitting a rule or selecting members
- `soup`: average the weights of several checkpoints
"""

from fmcli.members.pool import Pool, open_pool
from fmcli.members.predict import find_other_predictions, predict_pool, write_predictions
from fmcli.members.stored import StoredMember
from fmcli.members.validation import (
    fit_rule,
    predict_for_fitting,
    predict_shared_validation,
    predict_validation,
    vote_on_split,
)

__all__ = [
    "Pool",
    "StoredMember",
    "find_other_predictions",
    "fit_rule",
    "open_pool",
    "predict_for_fitting",
    "predict_pool",
    "predict_shared_validation",
    "predict_validation",
    "vote_on_split",
    "write_predictions",
]
