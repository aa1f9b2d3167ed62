"""Train the members of a recipe: plan a run (`plan`), execute it (`run`), and train one member (`loop`).

`learner` takes the steps of a member; `saving` and `state` write its files. `fingerprint` checks that a resumed run
will give the same weights as an uninterrupted run.
"""

from fmcli.training.checkpoint_writer import VALIDATION_FILE
from fmcli.training.fingerprint import Fingerprint
from fmcli.training.loop import SAVE_INTERVAL_S, train_member
from fmcli.training.state import STATE_FILE, load_state

__all__ = ["SAVE_INTERVAL_S", "STATE_FILE", "VALIDATION_FILE", "Fingerprint", "load_state", "train_member"]
