"""Train the members of a recipe: plan a run (`plan`), execute it (`run`), and train one member (`loop`).

One step of a member is in `learner`, and its files in `saving` and `state`. `fingerprint` checks that a resumed run
ends like an uninterrupted one.
"""

from fmcli.training.fingerprint import Fingerprint
from fmcli.training.loop import SAVE_INTERVAL_S, train_member
from fmcli.training.saving import VALIDATION_FILE
from fmcli.training.state import STATE_FILE, load_state

__all__ = ["SAVE_INTERVAL_S", "STATE_FILE", "VALIDATION_FILE", "Fingerprint", "load_state", "train_member"]
