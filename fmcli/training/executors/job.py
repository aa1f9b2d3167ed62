"""A piece of work that announces what happens, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmcli.events import Reporter

Job = Callable[[Reporter], Any]


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a piece of work ended.

    Args:
        name: Which one.
        result: What it returned; None where it failed or was stopped.
        error: Why it failed; from another process, with the traceback as a note.
        stopped: Whether it was stopped, and left what is needed to go on.
    """

    name: str
    result: Any = None
    error: Exception | None = None
    stopped: bool = False
