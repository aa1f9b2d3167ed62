"""Training one member.

Its epochs (`loop`), its steps (`learner`, on a GPU `step_graph`), its files (`outcome`, `state`), and what must be the
same to go on with them (`circumstances`, `earlier`).
"""

from fmcli.trainer.circumstances import Circumstances
from fmcli.trainer.loop import SAVE_AFTER, train_member
from fmcli.trainer.outcome import VALIDATION_FILE
from fmcli.trainer.state import STATE_FILE, load_state

__all__ = ["SAVE_AFTER", "STATE_FILE", "VALIDATION_FILE", "Circumstances", "load_state", "train_member"]
