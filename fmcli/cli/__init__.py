"""The command line. `run` is the only function that turns errors into messages and exit statuses."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn, TextIO

from fmcli.errors import DeviceError, ExitStatus, FmcliError, OutputClosed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run fmcli and exit.

    Args:
        arguments: Command-line arguments without the program name. Default: `sys.argv[1:]`.
    """
    try:
        _open_streams()
        status = run(arguments)
    except KeyboardInterrupt:  # Ctrl-C can also arrive while an error is printed
        status = ExitStatus.INTERRUPTED
    finally:
        _flush_or_discard(sys.stderr)
    sys.exit(status)


def _open_streams() -> None:
    """Make stdout and stderr accept any text; redirect a closed one, as after `2>&-`, to the null device."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null_device = os.open(os.devnull, os.O_WRONLY)
            if null_device != number:
                os.dup2(null_device, number)
                os.close(null_device)
            os.set_inheritable(number, True)  # otherwise a child process could open a file under this number
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # class names can be in any script


def _flush_or_discard(stream: TextIO) -> None:
    """Flush a stream, or discard its content if that fails; otherwise Python would exit with its own status."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run fmcli and return its exit status.

    Args:
        arguments: Command-line arguments without the program name. Default: `sys.argv[1:]`.
    """
    try:
        from fmcli.cli.app import app

        app(args=arguments, prog_name="fmcli")
    except SystemExit as leaving:  # typer exits after help and wrong usage; typer and rich exit if a pipe is closed
        if isinstance(leaving.__context__, BrokenPipeError):
            return _fail(OutputClosed("standard output is closed"))
        return leaving.code if isinstance(leaving.code, int) else ExitStatus.FAILED
    except FmcliError as error:
        return _fail(error)
    except OSError as error:  # for example a file name that is too long, or a read-only folder
        prefix = f"{error.filename}: " if error.filename else ""
        _flush_or_discard(sys.stdout)  # the full disk may be the one behind standard output
        hint = "check the path, its permissions and the free disk space"
        return _fail(FmcliError(f"{prefix}{error.strerror or error}", hint=hint))
    except (MemoryError, RuntimeError) as error:
        from fmcli.hardware.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        hint = "use a smaller batch, or choose another device with --device"
        return _fail(DeviceError("the device has too little memory", hint=hint))
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def _fail(error: FmcliError) -> ExitStatus:
    """Print an error and return its exit status. Print nothing if standard output was closed."""
    if isinstance(error, OutputClosed):
        for stream in (sys.stdout, sys.stderr):
            _flush_or_discard(stream)
        return error.exit_status
    from fmcli.cli.remedies import hint_of
    from fmcli.report.console import show_error

    try:
        show_error(error, hint=hint_of(error))
    except (BrokenPipeError, SystemExit):  # rich exits if standard error is a closed pipe
        _flush_or_discard(sys.stderr)
    return error.exit_status
