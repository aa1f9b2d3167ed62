"""Start processes that need no time to import PyTorch.

They are forked from a server that has loaded the libraries and computes nothing. A new interpreter takes seconds. Use
one only to test the start of the interpreter or its imports.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.helpers import Result

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preload"])
Target = Callable[..., object]


class ForkedContext:
    """Replaces the multiprocessing context that parallel members are spawned from."""

    Pipe = staticmethod(_SERVER.Pipe)

    def Process(self, target: Target, args: tuple[Any, ...]) -> ForkServerProcess:  # noqa: N802
        return _create(target, args)


class StartedProcess:
    """A process whose output goes to files.

    Args:
        target: Function to call; defined at the top of a module.
        args: Its arguments.
        new_session: Whether the process is the leader of a new process group.
    """

    def __init__(self, target: Target, *args: object, new_session: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = _create(_redirect, (self._files, new_session, target, args))
        self._process.start()
        self.pid = self._process.pid

    def read_output(self) -> tuple[str, str]:
        """Return the contents of standard output and standard error so far."""
        stdout, stderr = (path.read_text("utf-8") if path.exists() else "" for path in self._files)
        return stdout, stderr

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self.finish()

    def finish(self) -> Result:
        """Wait for the process and return its exit status and output."""
        self._process.join()
        result = Result(self._process.exitcode, *self.read_output())
        self._folder.cleanup()
        return result


def start_fmcli(*words: object, new_session: bool = False) -> StartedProcess:
    """Run fmcli in another process."""
    return StartedProcess(_run_fmcli, [str(word) for word in words], new_session=new_session)


def _run_fmcli(words: list[str]) -> None:
    from fmcli.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell would ignore SIGINT
    sys.argv = ["fmcli", *words]
    main()


def _redirect(files: list[Path], new_session: bool, target: Target, args: tuple[Any, ...]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    if new_session:
        os.setsid()
    target(*args)


def _create(target: Target, args: tuple[Any, ...]) -> ForkServerProcess:
    """Return a process that gets the environment and the signal mask of this one."""
    with chdir(Path(__file__).parents[1]):  # where the server finds the package `tests`
        forkserver.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return _SERVER.Process(target=_enter, args=(dict(os.environ), mask, target, args))


def _enter(environment: dict[str, str], mask: set[int], target: Target, args: tuple[Any, ...]) -> None:
    multiprocessing.set_start_method(None, force=True)  # otherwise its children would start from a server, too
    os.environ.clear()
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    target(*args)
