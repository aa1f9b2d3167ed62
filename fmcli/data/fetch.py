"""Download datasets from mirrors or from the Debian package, and verify the content."""

import http.client
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fmcli.data.cache import cache_folder
from fmcli.data.sources import FASHION_MNIST_FILES, find_fashion_mnist, verify_fashion_mnist
from fmcli.errors import DataError, did_you_mean, printable
from fmcli.recipe.data import KNOWN_SOURCES

MAX_DOWNLOAD_BYTES = 1 << 27  # five times the size of the largest file
TIMEOUT_S = 20
DEBIAN_PACKAGE = "dataset-fashion-mnist"


def fetch(name: str, *, data_root: Path | None = None, log: Callable[[str], None] = lambda text: None) -> Path:
    """Download a built-in dataset, unless it exists, and verify it.

    Args:
        name: Name of the dataset, such as `fashion-mnist`.
        data_root: Folder to search first and to write to. Default: the user's cache.
        log: Function that is called with each progress message.

    Returns:
        Folder of the dataset.

    Raises:
        DataError: The dataset is unknown, cannot be downloaded, or differs from the published dataset.
    """
    if name not in KNOWN_SOURCES:
        raise DataError(f"no built-in dataset {printable(name)!r}; {did_you_mean(name, list(KNOWN_SOURCES))}")
    found = find_fashion_mnist(data_root)
    if found is not None:
        verify_fashion_mnist(found)
        log(f"{name} is in {found} (verified)")
        return found
    target = (data_root or cache_folder()) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as work:
            _move(_download(Path(work), log), target)
    except OSError as error:
        raise DataError(
            f"cannot write {printable(target)}: {error.strerror or error}", remedies=["data-root"]
        ) from error
    log(f"{name} is in {target} (verified)")
    return target


def _move(folder: Path, target: Path) -> None:
    """Move the four files into the target folder. Other files there are kept."""
    target.mkdir(exist_ok=True)
    for name in FASHION_MNIST_FILES:
        for variant in (name, f"{name}.gz"):
            if (folder / variant).is_file():
                (folder / variant).replace(target / variant)
            else:  # an old file of the other variant could be read instead of the new file
                (target / variant).unlink(missing_ok=True)


def _download(work: Path, log: Callable[[str], None]) -> Path:
    """Return a folder in `work` with the four verified files."""
    reasons = []
    for download in (_download_from_mirrors, _download_debian_package):
        try:
            return download(work, log)
        except DataError as error:
            log(error.message)
            reasons.append(error.message)
    raise DataError(
        f"cannot download Fashion-MNIST: {'; '.join(reasons)}",
        hint=f"on Debian or Ubuntu: apt-get install {DEBIAN_PACKAGE}; or put the four files into a folder yourself",
        remedies=["data-root"],
    )


def _download_from_mirrors(work: Path, log: Callable[[str], None]) -> Path:
    """Download the files from the mirrors that torchvision lists."""
    from torchvision.datasets import FashionMNIST

    folder = work / "download"
    folder.mkdir()
    reason = "torchvision has no mirrors"
    for mirror in FashionMNIST.mirrors:
        log(f"downloading from {mirror}")
        try:
            for name in FASHION_MNIST_FILES:
                _download_file(f"{mirror}{name}.gz", folder / f"{name}.gz")
            verify_fashion_mnist(folder)
            return folder
        except (OSError, http.client.HTTPException, ValueError, DataError) as error:
            reason = f"{mirror}: {printable(error)}"
    raise DataError(f"no mirror works ({reason})")


def _download_file(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        while block := response.read(1 << 20):
            file.write(block)
            if file.tell() > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"{path.name} is larger than {MAX_DOWNLOAD_BYTES} bytes")


def _download_debian_package(work: Path, log: Callable[[str], None]) -> Path:
    """Download the Debian package with apt and unpack it in `work`, without root rights."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise DataError("apt is not installed")
    log(f"downloading the Debian package {DEBIAN_PACKAGE}")
    folder = work / "debian"
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    # Try the package lists of the system first. If there are none, download them to a private folder.
    if not _succeeds(["apt-get", "download", DEBIAN_PACKAGE], folder):
        settings = (f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache", "APT::Sandbox::User=")
        apt_get = ["apt-get", *(word for setting in settings for word in ("-o", setting))]
        _succeeds([*apt_get, "update"], folder)
        _succeeds([*apt_get, "download", DEBIAN_PACKAGE], folder)
    packages = sorted(folder.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages or not _succeeds(["dpkg-deb", "-x", str(packages[-1]), str(folder / "unpacked")], folder):
        raise DataError(f"apt cannot download the package {DEBIAN_PACKAGE}")
    unpacked = folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"
    verify_fashion_mnist(unpacked)
    return unpacked


def _succeeds(command: list[str], folder: Path) -> bool:
    """Run a command in a folder and return whether it succeeded."""
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return process.returncode == 0
