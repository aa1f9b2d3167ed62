"""What a user can get wrong, and the exit status that says so.

Library code raises these; `fmcli.cli.main` is the one place that catches them and turns each into a line
on standard error.
"""

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitStatus(IntEnum):
    """What the process tells the shell."""

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
    """Something that a user can mend.

    Args:
        message: What is wrong, with the offending value and what was expected.
        hint: What to type or change next, if anything.
    """

    exit_status = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class DivergedError(FmcliError):
    """A training's loss or weights are no longer finite."""


class UsageError(FmcliError):
    """A command was called with arguments that do not fit together."""

    exit_status = ExitStatus.USAGE


class RunInUseError(UsageError):
    """Another process is training the run."""


class RecipeError(FmcliError):
    """A recipe cannot be read, or says something that cannot be done.

    Args:
        message: The line that sums it up.
        problems: Every problem found, each as `path: problem`.
        hint: What to do next.
    """

    exit_status = ExitStatus.USAGE

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


class DataError(FmcliError):
    """Images or labels are missing, broken or not what was promised."""

    exit_status = ExitStatus.DATA


class CheckpointError(FmcliError):
    """A checkpoint, run folder or predictions file is missing, broken or does not match."""

    exit_status = ExitStatus.CHECKPOINT


class DeviceError(FmcliError):
    """The device asked for is not there, or has no memory left."""

    exit_status = ExitStatus.DEVICE


class InterruptedRun(FmcliError):
    """Ctrl-C or SIGTERM stopped a run that can be resumed.

    Args:
        message: What was stopped.
        exit_status: `ExitStatus.INTERRUPTED` or `ExitStatus.TERMINATED`.
        hint: The command that goes on.
    """

    def __init__(self, message: str, *, exit_status: ExitStatus, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = exit_status


class OutputClosed(FmcliError):
    """Whoever read standard output has gone (`| head`): not a fault, so nothing is said about it."""

    exit_status = ExitStatus.PIPE_CLOSED


def nearest(name: object, choices: Iterable[str]) -> str | None:
    """Return the choice that a mistyped name most likely meant.

    Args:
        name: What the user typed.
        choices: What is valid there.

    Returns:
        The closest choice, or None when none is close.

    Example:
        >>> nearest("kernel_sise", ["kernel_size", "widths"])
        'kernel_size'
        >>> nearest("zzz", ["kernel_size", "widths"]) is None
        True
    """
    matches = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: object, choices: Sequence[str]) -> str:
    """Return `did you mean …?` where a choice is close, else the list of all choices.

    Example:
        >>> did_you_mean("adan", ["adam", "sgd"])
        "did you mean 'adam'?"
        >>> did_you_mean("zzz", ["adam", "sgd"])
        'choose from: adam, sgd'
    """
    match = nearest(name, choices)
    return f"did you mean '{match}'?" if match else f"choose from: {', '.join(choices)}"


def is_utf8(text: str) -> bool:
    """Tell text from that which stands for bytes that are not UTF-8, as in a file's name or an argument."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: object) -> str:
    r"""Return text that is safe on a terminal: control characters and undecodable bytes are escaped.

    Example:
        >>> printable("a\x1b[31mb\n")
        'a\\x1b[31mb\\n'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )
