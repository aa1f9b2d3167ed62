"""The process's streams: results to standard output, everything else to standard error."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from fmcli.errors import FmcliError, OutputClosed, printable

UNBOUNDED = 100_000  # columns: a table that goes into a file or a pipe is never cut


class Forgiving:
    """A stream that loses what cannot be written, so that no training ends because the disk of its log is full.

    Args:
        stream: Text.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or not.

        Raises:
            BrokenPipeError: Nobody reads it any more.
        """
        with _forgiven():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or not.

        Raises:
            BrokenPipeError: Nobody reads it any more.
        """
        with _forgiven():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _forgiven() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Terminal:
    """Standard output and standard error, as tables, lines and progress need them.

    Args:
        quiet: Say nothing on standard error but errors.
        verbose: Say more there.
        out: By default the process's own.
        err: By default the process's own.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.out = make_console(out or sys.stdout)
        self.err = make_console(Forgiving(err or sys.stderr))

    def print(self, *results: object) -> None:
        """Write results to standard output.

        Raises:
            OutputClosed: Nobody reads it any more.
        """
        try:
            self.out.print(*results, soft_wrap=False)
            self.out.file.flush()
        except BrokenPipeError as error:
            raise OutputClosed("standard output is closed") from error

    def write(self, text: str) -> None:
        """Write text to standard output, not wrapped and not coloured; but for a terminal, as it is.

        Raises:
            OutputClosed: Nobody reads it any more.
        """
        try:
            self.out.file.write(_harmless(text) if self.out.file.isatty() else text)
            self.out.file.flush()
        except BrokenPipeError as error:
            raise OutputClosed("standard output is closed") from error

    def to_json(self, value: object, *, indent: int | None = None) -> str:
        """Return JSON that standard output can take: escaped where it is not UTF-8."""
        utf8 = (self.out.encoding or "").replace("-", "").startswith("utf8")
        return json.dumps(value, indent=indent, ensure_ascii=not utf8)

    def note(self, text: str) -> None:
        """Tell the user something that is no result."""
        if not self.quiet:
            self.err.print(Text(_harmless(text)), soft_wrap=True)

    def detail(self, text: str) -> None:
        """Tell the user something that only --verbose wants."""
        if self.verbose and not self.quiet:
            self.err.print(Text(_harmless(text), style="dim"), soft_wrap=True)


def _harmless(text: str) -> str:
    """Return text that leaves a terminal as it is, with its lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def make_console(file: TextIO | Forgiving) -> Console:
    """Return a console for a stream: as wide and colourful as its terminal, or plain and unbounded."""
    interactive = file.isatty() and os.environ.get("TERM") != "dumb"
    return Console(
        file=cast(TextIO, file),
        width=None if interactive else UNBOUNDED,
        color_system="auto" if interactive else None,
        force_terminal=interactive,
        highlight=False,
        emoji=False,
        markup=False,
    )


def show_error(error: FmcliError, *, hint: str | None = None, file: TextIO | None = None) -> None:
    """Print an error and a hint on standard error.

    Args:
        error: The error.
        hint: What to type next; by default the error's own hint.
        file: By default standard error.
    """
    console = make_console(Forgiving(file or sys.stderr))
    first, *rest = error.message.split("\n")
    lines = [f"[bold red]error:[/] {escape(printable(first))}", *(escape(printable(line)) for line in rest)]
    if hint := hint or error.hint:
        lines.append(f"[cyan]hint:[/]  {escape(printable(hint))}")
    for line in lines:
        console.print(Text.from_markup(line, emoji=False), soft_wrap=True)
