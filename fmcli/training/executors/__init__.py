"""Several pieces of work at once: each in a process of its own (`processes`), or in turns within this one (`cuda_streams`)."""

from fmcli.training.executors.cuda_streams import take_turns
from fmcli.training.executors.job import Ended, Work
from fmcli.training.executors.processes import side_by_side

__all__ = ["Ended", "Work", "side_by_side", "take_turns"]
