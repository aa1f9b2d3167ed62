"""The command line: `main` is the one place where errors become a message and an exit status."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from fmcli.errors import DeviceError, ExitStatus, FmcliError, OutputClosed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run fmcli and leave the process.

    Args:
        arguments: Without the program's name; by default those of the process.
    """
    try:
        _open_streams()
        status = run(arguments)
    except KeyboardInterrupt:  # also while an error is shown
        status = ExitStatus.INTERRUPTED
    finally:
        _empty(sys.stderr)
    sys.exit(status)


def _open_streams() -> None:
    """Make the process's streams take any text, and nothing where one is closed, as by `2>&-`."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)  # no file that is opened later takes its place, here or in a child
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a class name in any script


def _empty(stream: TextIO) -> None:
    """Write what a stream holds, or drop it where that cannot be; Python would end with a status of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run fmcli and return its exit status.

    Args:
        arguments: Without the program's name; by default those of the process.
    """
    try:
        from fmcli.cli.app import app

        app(args=arguments, prog_name="fmcli")
    except SystemExit as leaving:  # typer's own: help, wrong use; typer's and rich's: a closed pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return _fail(OutputClosed("standard output is closed"))
        return leaving.code if isinstance(leaving.code, int) else ExitStatus.FAILED
    except FmcliError as error:
        return _fail(error)
    except OSError as error:  # what no room could say more of: a name that is too long, a folder that is locked
        where = f"{error.filename}: " if error.filename else ""
        _empty(sys.stdout)  # which may be what has no room
        return _fail(FmcliError(f"{where}{error.strerror or error}", hint="check that path, its rights and the disk"))
    except (MemoryError, RuntimeError) as error:
        from fmcli.hardware.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(DeviceError("the device has too little memory", hint="a smaller batch needs less; see --device"))
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _fail(error: FmcliError) -> ExitStatus:
    """Show an error and return its exit status; a closed pipe is none, and gets no word."""
    if isinstance(error, OutputClosed):
        for stream in (sys.stdout, sys.stderr):
            _empty(stream)
        return error.exit_status
    from fmcli.cli.remedies import hint_of
    from fmcli.report.console import show_error

    try:
        show_error(error, hint=hint_of(error))
    except (BrokenPipeError, SystemExit):  # rich's way to say so: nobody reads it
        _empty(sys.stderr)
    return error.exit_status
