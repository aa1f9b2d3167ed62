"""The command line: `main` is the one place where errors become a message and an exit status."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fmcli.errors import DeviceError, ExitStatus, FmcliError, OutputClosed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run fmcli and leave the process.

    Args:
        arguments: Without the program's name; by default those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed, as by 2>&-
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a class name in any script
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run fmcli and return its exit status.

    Args:
        arguments: Without the program's name; by default those of the process.
    """
    from fmcli.cli.app import app

    try:
        app(args=arguments, prog_name="fmcli")
    except SystemExit as leaving:  # typer's own: help, wrong use; typer's and rich's: a closed pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return _fail(OutputClosed("standard output is closed"))
        return leaving.code if isinstance(leaving.code, int) else ExitStatus.FAILED
    except FmcliError as error:
        return _fail(error)
    except OSError as error:  # what no room could say more of: a name that is too long, a folder that is locked
        where = f"{error.filename}: " if error.filename else ""
        return _fail(FmcliError(f"{where}{error.strerror or error}", hint="check that path, its rights and the disk"))
    except (MemoryError, RuntimeError) as error:
        from fmcli.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(DeviceError("the device has too little memory", hint="a smaller batch needs less; see --device"))
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _fail(error: FmcliError) -> ExitStatus:
    """Show an error and return its exit status; a closed pipe is none, and gets no word."""
    if isinstance(error, OutputClosed):
        # What is still buffered has nowhere to go; without this, Python complains at exit.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error.exit_status
    from fmcli.report.console import show_error

    show_error(error)
    return error.exit_status
