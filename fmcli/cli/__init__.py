"""The command line: `main` is the one place where errors become a message and an exit status."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from fmcli.errors import ExitStatus, FmcliError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run fmcli and leave the process.

    Args:
        arguments: Without the program's name; by default those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
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
    except SystemExit as leaving:  # typer's own: help, wrong use
        return leaving.code if isinstance(leaving.code, int) else ExitStatus.FAILED
    except FmcliError as error:
        from fmcli.report.console import show_error

        show_error(error)
        if error.exit_status == ExitStatus.PIPE_CLOSED:
            # What is still buffered has nowhere to go; without this, Python complains at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.exit_status
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE
