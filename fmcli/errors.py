"""Errors that a user can fix, each with its exit status.

Library code raises them. Only `fmcli.cli.run` catches them; it prints the message and the hint to standard error.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Action = Literal[
    "batch-size", "data-root", "device", "evaluate-again", "groups", "jobs", "labels", "more-trials", "output",
    "overwrite", "pack", "replace", "resume", "resume-run", "seeds", "set", "size", "skip-done", "soup-method",
    "split", "start-search", "summary", "threads", "tie", "train", "train-member", "unpack", "vote", "weights",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Remedy:
    """An action that fixes an error.

    The library knows no options or commands. `fmcli.cli.remedies` has the instruction for each action.

    Args:
        action: Name of the action.
        value: The value to use, such as `cuda` for the action `device`; empty if the user must choose it.
    """

    action: Action
    value: object = ""


class ExitStatus(IntEnum):
    """Exit status of the process."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    DATA = 3
    CHECKPOINT = 4
    DEVICE = 5
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


class FmcliError(Exception):
    """An error that the user can fix.

    Args:
        message: The problem, with the wrong and the expected value.
        hint: What to type or change next.
        remedies: Actions that fix the problem. `cli/` adds an instruction for each action to the hint.
    """

    exit_status = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str | None = None, remedies: Sequence[Remedy | Action] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.remedies = tuple(one if isinstance(one, Remedy) else Remedy(one) for one in remedies)


class DivergedError(FmcliError):
    """The loss or a weight is no longer finite."""


class UsageError(FmcliError):
    """An argument is wrong, or arguments contradict each other."""

    exit_status = ExitStatus.USAGE


class RunInUseError(UsageError):
    """Another process is training the run."""


class RecipeError(FmcliError):
    """A recipe cannot be read or describes something impossible.

    Args:
        message: A summary in one line.
        problems: All problems, each as `path: problem`.
        hint: What to type or change next.
        remedies: See `FmcliError`.
    """

    exit_status = ExitStatus.USAGE

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[str] = (),
        hint: str | None = None,
        remedies: Sequence[Remedy | Action] = (),
    ) -> None:
        text = "\n".join([message, *(f"  {problem}" for problem in problems)])
        super().__init__(text, hint=hint, remedies=remedies)
        self.problems = tuple(problems)


class DataError(FmcliError):
    """Images or labels are missing, damaged or different from their description."""

    exit_status = ExitStatus.DATA


class CheckpointError(FmcliError):
    """A checkpoint, ensemble, run folder or predictions file is missing or damaged, or does not match other files."""

    exit_status = ExitStatus.CHECKPOINT


class DeviceError(FmcliError):
    """The requested device does not exist or has no memory left."""

    exit_status = ExitStatus.DEVICE


class InterruptedRun(FmcliError):
    """Ctrl-C or SIGTERM stopped a run that can be resumed.

    Args:
        exit_status: `ExitStatus.INTERRUPTED` or `ExitStatus.TERMINATED`.
        hint: The command that resumes the run.
    """

    def __init__(self, exit_status: ExitStatus, *, hint: str) -> None:
        super().__init__(exit_status.name.lower(), hint=hint)
        self.exit_status = exit_status


class OutputClosed(FmcliError):
    """The program that reads standard output has closed it, as `head` does. No message is printed."""

    exit_status = ExitStatus.PIPE_CLOSED


def join_names(names: Sequence[str], limit: int = 8) -> str:
    """Return names for a message: at most `limit` of them, and the number of the others.

    Example:
        >>> join_names(["cat", "dog", "fox"], limit=2)
        'cat, dog and 1 more'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


def did_you_mean(name: object, choices: Sequence[str]) -> str:
    """Return `did you mean …?` if a choice is close to the name; otherwise return the first choices.

    Example:
        >>> did_you_mean("adan", ["adam", "sgd"])
        "did you mean 'adam'?"
        >>> did_you_mean("zzz", ["adam", "sgd"])
        'choose from: adam, sgd'
    """
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"choose from: {join_names(choices, limit=12)}"


def is_utf8(text: str) -> bool:
    """Return whether text can be written as UTF-8. It cannot if it is a file name with bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: object) -> str:
    r"""Return text that is safe to print: control characters and undecodable bytes are escaped.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a\\x1b[31mb\\n'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )
