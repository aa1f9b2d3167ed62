"""Write results to standard output and everything else to standard error."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from fmcli.errors import FmcliError, OutputClosed, printable
from fmcli.report.sheet import UNBOUNDED_COLUMNS


class BestEffortStream:
    """A text stream that drops text it cannot write, so that training continues if the log's disk is full.

    A closed pipe still raises `BrokenPipeError`.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it if the stream cannot take it."""
        with _ignore_write_errors():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or do nothing if it cannot take its buffered text."""
        with _ignore_write_errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _ignore_write_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Terminal:
    """Standard output and standard error.

    Args:
        quiet: Print only results and errors.
        verbose: Print details, too.
        out: Stream for results. Default: the process's standard output.
        err: Stream for everything else. Default: the process's standard error.
    """

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.out = make_console(out or sys.stdout)
        self.err = make_console(BestEffortStream(err or sys.stderr))

    def print(self, *results: object, max_width: int = UNBOUNDED_COLUMNS) -> None:
        """Print results to standard output, wrapped to the width of the terminal.

        Args:
            results: Text and tables.
            max_width: Maximum width in characters, also in a file or pipe. Longer lines are wrapped.

        Raises:
            OutputClosed: The program that reads standard output has closed it.
        """
        with _detect_closed_output():
            self.out.print(*results, soft_wrap=False, width=min(self.out.width, max_width))
            self.out.file.flush()

    def write(self, text: str) -> None:
        """Write text to standard output without wrapping. Control characters are escaped only for a terminal.

        Raises:
            OutputClosed: The program that reads standard output has closed it.
        """
        with _detect_closed_output():
            self.out.file.write(_escape_lines(text) if self.out.file.isatty() else text)
            self.out.file.flush()

    def to_json(self, value: object, *, indent: int | None = None) -> str:
        """Return a value as JSON. Characters outside ASCII are escaped unless standard output is UTF-8."""
        utf8 = (self.out.encoding or "").replace("-", "").startswith("utf8")
        return json.dumps(value, indent=indent, ensure_ascii=not utf8)

    def note(self, text: str, *, style: str = "") -> None:
        """Print a message to standard error, unless `quiet` is set."""
        if not self.quiet:
            self.err.print(Text(_escape_lines(text), style), soft_wrap=True)

    def detail(self, text: str) -> None:
        """Print a message to standard error if `verbose` is set and `quiet` is not."""
        if self.verbose:
            self.note(text, style="dim")


@contextmanager
def _detect_closed_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed("standard output is closed") from error


def _escape_lines(text: str) -> str:
    """Escape control characters, except for line breaks."""
    return "\n".join(printable(line) for line in text.split("\n"))


def make_console(file: TextIO | BestEffortStream) -> Console:
    """Return a rich console with the terminal's width and colours, or a plain one of unlimited width for a file."""
    interactive = file.isatty() and os.environ.get("TERM") != "dumb"
    return Console(
        file=cast(TextIO, file),
        width=None if interactive else UNBOUNDED_COLUMNS,
        color_system="auto" if interactive else None,
        force_terminal=interactive,
        highlight=False,
        emoji=False,
        markup=False,
    )


def show_error(error: FmcliError, *, hint: str | None = None, file: TextIO | None = None) -> None:
    """Print an error and its hint.

    Args:
        error: The error.
        hint: What to type next. Default: the error's own hint.
        file: Stream to print to. Default: standard error.
    """
    console = make_console(BestEffortStream(file or sys.stderr))
    console.print(Text.assemble(("error:", "bold red"), " ", _escape_lines(error.message)), soft_wrap=True)
    if hint := hint or error.hint:
        console.print(Text.assemble(("hint:", "cyan"), "  ", printable(hint)), soft_wrap=True)
