"""Several pieces of work at once: each in a process of its own (`processes`), or in turns within this one (`turns`)."""

from fmcli.parallel.processes import side_by_side
from fmcli.parallel.turns import take_turns
from fmcli.parallel.work import Ended, Work

__all__ = ["Ended", "Work", "side_by_side", "take_turns"]
