"""Run fmcli for a shell without starting Python and importing PyTorch for each command.

`install` writes an executable `fmcli`, which sends its arguments and streams to a server. The server runs each command
in a fork. Trainings are short: few epochs, and a few hundred images in place of Fashion-MNIST.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fmcli.cli import main
from fmcli.errors import FmcliError
from tests.processes import StartedProcess

MAX_EPOCHS = 20
PUBLISHED_IMAGES = (["recipe"], ["data"])  # commands that read Fashion-MNIST itself
_CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = {{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    message = json.dumps(request).encode()
    socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(message)
    status = server.recv(1)
sys.exit(status[0] if status else 1)
"""


def install(folder: Path, stand_in: Path) -> StartedProcess:
    """Write `fmcli` to a folder and start its server.

    Args:
        folder: Folder for the executable.
        stand_in: Folder of IDX files to read instead of Fashion-MNIST.
    """
    address = folder / "socket"
    client = folder / "fmcli"
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address)), "utf-8")
    client.chmod(0o755)
    server = StartedProcess(serve, str(address), stand_in)
    while not address.exists():
        if not server.is_alive():
            raise RuntimeError(server.read_output()[1])
        time.sleep(0.02)
    return server


def serve(address: str, stand_in: Path) -> None:
    """Answer requests until the process is killed."""
    _make_fast()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _answer(connection, stand_in)
            connection.close()


def _answer(connection: socket.socket, stand_in: Path) -> None:
    """Run one command and send its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, *_ = socket.recv_fds(connection, 4, 3)
    request = json.loads(_receive(connection, int.from_bytes(length, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["words"][:1] not in PUBLISHED_IMAGES:
        _use_stand_in(stand_in)
    os.chdir(request["folder"])
    status = 70
    try:
        sys.argv = ["fmcli", *shorten(request["words"])]
        main()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        connection.sendall(bytes([status]))
        os._exit(status)


def _receive(connection: socket.socket, length: int) -> bytes:
    message = b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    return message


def shorten(words: Sequence[str]) -> list[str]:
    """Add options to a training: the smallest valid number of epochs, and two trials for a search."""
    from fmcli.recipe import load_recipe

    name, values = next(iter(words), ""), list(words)
    if name not in ("train", "search", "reproduce") or "--help" in words:
        return values
    if name == "search":
        values += ["--trials", "2"]
    recipe = next((b for a, b in itertools.pairwise(words) if a in ("--recipe", "-r")), "quick")
    overrides = [b for a, b in itertools.pairwise(words) if a == "--set"]
    for epochs in range(1, MAX_EPOCHS + 1):
        shorter = f"trainer.epochs={epochs}"
        try:
            load_recipe(recipe, [*overrides, shorter])
        except FmcliError:
            continue
        return [*values, "--set", shorter]
    return values


def _make_fast() -> None:
    """Import the modules of all commands, and disable what costs more time than a short training."""

    import fmcli.report.ensemble_evaluation
    import fmcli.report.plots.files  # noqa: F401
    from fmcli.networks.cpu import loading
    from fmcli.training.executors import processes

    processes._CONTEXT = multiprocessing.get_context("fork")  # spawned processes would not read the stand-in
    loading._compile_kernels = lambda *_: None
    os.fsync = lambda _: None


def _use_stand_in(folder: Path) -> None:
    """Read the images of a folder as if they were Fashion-MNIST."""
    import fmcli.data
    from fmcli.data import splits
    from fmcli.data.sources import fashion_mnist
    from fmcli.recipe.data import FirstImages

    os.environ["FMCLI_DATA"] = str(folder)
    for name in fashion_mnist.FASHION_MNIST_FILES:
        fashion_mnist.FASHION_MNIST_FILES[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    split_images = splits.split_images

    def split_few(source, spec):
        if isinstance(spec.validation, FirstImages):  # the first 5,000 of 60,000 images
            first = min(spec.validation.first, len(source.train) // 6)
            spec = spec.model_copy(update={"validation": FirstImages(first=first)})
        return split_images(source, spec)

    splits.split_images = fmcli.data.split_images = split_few
