"""The source `fashion-mnist`: find, verify and download the four files of Fashion-MNIST.

References:
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.
"""

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fmcli.choices import BUILT_IN_SOURCES
from fmcli.data.cache import cache_folder
from fmcli.data.idx import find_idx_file, read_idx
from fmcli.data.sources.base import SourceImages, SourceRequest
from fmcli.errors import DataError, printable

# SHA-256 of the current files (published 31 August 2017), unpacked because distributors compress them differently.
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SYSTEM_FOLDER = Path("/usr/share/datasets")
MAX_DOWNLOAD_BYTES = 1 << 27  # five times the size of the largest file
TIMEOUT_S = 20
DEBIAN_PACKAGE = "dataset-fashion-mnist"
_NAME = "fashion-mnist"
_FETCH_HINT = f"to download it: fmcli data fetch {_NAME}"


def load(request: SourceRequest) -> SourceImages:
    """Return the published images.

    Raises:
        DataError: The files are missing, or differ from the published files.
    """
    folder = find_fashion_mnist(request.data_root)
    if folder is None:
        searched = ", ".join(map(printable, _folders(request.data_root)))
        raise DataError(f"Fashion-MNIST was not found in {searched}", hint=_FETCH_HINT)
    arrays = verify_fashion_mnist(folder)
    splits = {
        split: (arrays[f"{prefix}-images-idx3-ubyte"][:, None], arrays[f"{prefix}-labels-idx1-ubyte"])
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    return SourceImages(folder, splits, BUILT_IN_SOURCES[_NAME].class_names)


def fetch(request: SourceRequest, log: Callable[[str], None]) -> Path:
    """Return the folder of the verified files, after downloading them if they are missing.

    Raises:
        DataError: The files cannot be downloaded or written, or differ from the published files.
    """
    found = find_fashion_mnist(request.data_root)
    if found is not None:
        verify_fashion_mnist(found)
        return found
    target = (request.data_root or cache_folder()) / _NAME
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{_NAME}.", dir=target.parent) as work:
            _move(_download(Path(work), log), target)
    except OSError as error:
        raise DataError(
            f"cannot write {printable(target)}: {error.strerror or error}", remedies=["data-root"]
        ) from error
    return target


def _folders(data_root: Path | None) -> Iterator[Path]:
    """Yield the folders to search, in order."""
    root = data_root or (Path(os.environ["FMCLI_DATA"]) if os.environ.get("FMCLI_DATA") else None)
    if root is not None:
        yield from (root / _NAME, root / "FashionMNIST" / "raw", root)
    yield cache_folder() / _NAME
    yield SYSTEM_FOLDER / _NAME


def find_fashion_mnist(data_root: Path | None) -> Path | None:
    """Return the first folder with all four files, or None."""
    folders = _folders(data_root)
    return next(
        (folder for folder in folders if all(find_idx_file(folder / name) for name in FASHION_MNIST_FILES)), None
    )


def verify_fashion_mnist(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the four files of Fashion-MNIST and compare each with its published digest.

    Returns:
        Array of each file.

    Raises:
        DataError: A file is missing or differs from the published file.
    """
    arrays = {}
    for name, digest in FASHION_MNIST_FILES.items():
        path = find_idx_file(folder / name)
        if path is None:
            raise DataError(f"{printable(folder)} has no {name} or {name}.gz", hint=_FETCH_HINT)
        arrays[name], content = read_idx(path)
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise DataError(
                f"{printable(path)} is not the published file: the SHA-256 of the content is {found[:16]}…, expected "
                f"{digest[:16]}… (files from before 31 August 2017 are different)",
                hint=f"remove the file, then run: fmcli data fetch {_NAME}",
            )
    return arrays


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
    unpacked = folder / "unpacked" / "usr" / "share" / "datasets" / _NAME
    verify_fashion_mnist(unpacked)
    return unpacked


def _succeeds(command: list[str], folder: Path) -> bool:
    """Run a command in a folder and return whether it succeeded."""
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return process.returncode == 0
