"""Training one member.

Its epochs (`loop`), its steps (`learner`, on a GPU `cuda_graph`), its files (`saving`, `state`), and what must be the
same to go on with them (`fingerprint`, `resume`).
"""

from fmcli.training.fingerprint import Fingerprint
from fmcli.training.loop import SAVE_AFTER, train_member
from fmcli.training.saving import VALIDATION_FILE
from fmcli.training.state import STATE_FILE, load_state

__all__ = ["SAVE_AFTER", "STATE_FILE", "VALIDATION_FILE", "Fingerprint", "load_state", "train_member"]
