"""Getting datasets: from their mirrors, or from Debian's package, always verified by content."""

import http.client
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fmcli.data.cache import cache_folder
from fmcli.data.sources import (
    DATASETS,
    FASHION_MNIST_FILES,
    find_fashion_mnist,
    verify_fashion_mnist,
)
from fmcli.errors import DataError, did_you_mean, printable

MAX_DOWNLOAD_BYTES = 1 << 27  # bytes; the largest of the four files is a fifth of that
TIMEOUT_S = 20  # seconds without an answer
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def fetch(name: str, *, data_root: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Get a built-in dataset, unless it is there, and verify it.

    Args:
        name: For instance `fashion-mnist`.
        data_root: Where to look first, and where to put it; by default the user's cache.
        say: Told what is being done.

    Returns:
        The folder that holds it.

    Raises:
        DataError: There is no such dataset, nothing could be reached, or what is there is not what was published.
    """
    if name not in DATASETS:
        raise DataError(f"no built-in dataset {printable(name)!r}; {did_you_mean(name, list(DATASETS))}")
    found = find_fashion_mnist(data_root)
    if found is not None:
        verify_fashion_mnist(found)
        say(f"{name} is in {found}, and verified")
        return found
    target = (data_root or cache_folder()) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as work:
            _move(_get(Path(work), say), target)
    except OSError as error:
        raise DataError(
            f"cannot write {printable(target)}: {error.strerror or error}",
            hint="choose another place with --data-root",
        ) from error
    say(f"{name} is in {target}, and verified")
    return target


def _move(folder: Path, target: Path) -> None:
    """Rename the four files into place, each whole; whatever else is there stays."""
    target.mkdir(exist_ok=True)
    for name in FASHION_MNIST_FILES:
        for form in (name, f"{name}.gz"):
            if (folder / form).is_file():
                (folder / form).replace(target / form)
            else:  # an older one would be found first
                (target / form).unlink(missing_ok=True)


def _get(work: Path, say: Callable[[str], None]) -> Path:
    """Return a folder below `work` that holds the four files, verified, from the first place that has them."""
    reasons = []
    for way in (_download, _unpack_debian):
        try:
            return way(work, say)
        except DataError as error:
            say(f"{error.message}; trying the next place")
            reasons.append(error.message)
    raise DataError(
        "Fashion-MNIST could not be fetched: " + "; ".join(reasons),
        hint="put its four files into a folder and name that with --data-root; "
        f"on Debian or Ubuntu: apt-get install {DEBIAN_PACKAGE}",
    )


def _download(work: Path, say: Callable[[str], None]) -> Path:
    """Download the files from the mirrors that torchvision knows."""
    from torchvision.datasets import FashionMNIST

    folder = work / "download"
    folder.mkdir()
    reason = "no mirror is known"
    for mirror in FashionMNIST.mirrors:
        say(f"downloading from {mirror}")
        try:
            for name in FASHION_MNIST_FILES:
                _download_file(f"{mirror}{name}.gz", folder / f"{name}.gz")
            verify_fashion_mnist(folder)
            return folder
        except (OSError, http.client.HTTPException, ValueError, DataError) as error:
            reason = f"{mirror}: {printable(error)}"
    raise DataError(f"no mirror answered ({reason})")


def _download_file(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
        size = 0
        while block := answer.read(1 << 20):
            size += len(block)
            if size > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"more than {MAX_DOWNLOAD_BYTES} bytes")
            file.write(block)


def _unpack_debian(work: Path, say: Callable[[str], None]) -> Path:
    """Download Debian's package with apt and unpack it here, without root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise DataError("apt is not here")
    say(f"downloading Debian's package {DEBIAN_PACKAGE}")
    folder = work / "debian"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    own = [
        "-o",
        f"Dir::State::Lists={folder}/lists",
        "-o",
        f"Dir::Cache={folder}/cache",
        "-o",
        "APT::Sandbox::User=",
    ]
    # With the system's package lists; where it has none, with lists of our own.
    if not (_runs(["apt-get", "download", DEBIAN_PACKAGE], folder)):
        _runs(["apt-get", *own, "update"], folder)
        _runs(["apt-get", *own, "download", DEBIAN_PACKAGE], folder)
    packages = sorted(folder.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages or not _runs(["dpkg-deb", "-x", str(packages[-1]), str(folder / "unpacked")], folder):
        raise DataError(f"apt cannot get {DEBIAN_PACKAGE}")
    unpacked = folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"
    verify_fashion_mnist(unpacked)
    return unpacked


def _runs(command: list[str], folder: Path) -> bool:
    """Tell whether a command succeeds in a folder."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
