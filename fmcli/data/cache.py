"""The cache folder: downloaded data sets, unpacked files and resized images."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs

from fmcli.errors import DataError, FmcliError, printable
from fmcli.storage.atomic import open_atomic, write_atomic
from fmcli.storage.locks import locked


class CacheError(FmcliError):
    """The cache cannot be written."""


def cache_folder() -> Path:
    """Return the folder for downloaded and unpacked data."""
    chosen = os.environ.get("XDG_CACHE_HOME")  # platformdirs reads it on Linux only
    return Path(chosen, "fmcli") if chosen else platformdirs.user_cache_path("fmcli")


def unpack_to_cache(path: Path, unpack: Callable[[BinaryIO], None], *, part: str = "") -> Path:
    """Unpack a file to the cache on first use. Return the path of the unpacked file.

    Args:
        path: The packed file. If its path, size or modification time changes, it is unpacked again.
        unpack: Function that writes the unpacked content to a file.
        part: Name of the part to unpack, if the file has several.

    Raises:
        DataError: The unpacked file cannot be written.
        OSError: The packed file cannot be read.
    """
    status = path.stat()
    name = hashlib.sha256(os.fsencode(path.resolve()) + f"\0{part}".encode()).hexdigest()[:32]
    try:
        return cached_file(name, f"{status.st_size}-{status.st_mtime_ns}", unpack)
    except CacheError as error:
        raise DataError(
            f"{printable(path)} does not fit into memory and cannot be unpacked to the cache: {printable(error)}",
            hint="set XDG_CACHE_HOME to a folder on a disk with enough space, or unpack the file yourself",
        ) from error


def cached_file(name: str, state: str, write: Callable[[BinaryIO], None]) -> Path:
    """Return the path of a file in the cache, after writing it if it is missing or damaged.

    The SHA-256 of each file is stored next to it, in the format of `sha256sum --check`. Files with the same name and
    a different state are removed.

    Args:
        name: Identifier of the input from which the file is made.
        state: Identifier of the version of the input.
        write: Function that writes the content to a file. If it raises a `DataError`, the error is not changed.

    Raises:
        CacheError: The file cannot be written.
    """
    folder = cache_folder() / "unpacked"
    target = folder / f"{name}-{state}"
    if _is_intact(target):
        return target
    try:
        with locked(folder):
            if not _is_intact(target):
                _remove_old(folder, name)
                with open_atomic(target) as file:
                    write(file)
                write_atomic(_digest_path(target), _digest_line(target))
    except DataError:
        raise
    except (FmcliError, OSError) as error:
        raise CacheError(printable(error)) from error
    return target


def _is_intact(target: Path) -> bool:
    try:
        return _digest_path(target).read_bytes() == _digest_line(target)
    except OSError:
        return False


def _digest_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _digest_line(target: Path) -> bytes:
    with target.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {target.name}\n".encode()


def _remove_old(folder: Path, name: str) -> None:
    """Remove other states of a file, and partial files of killed processes. The caller must hold the lock."""
    for old in (*folder.glob(f"{name}-*"), *folder.glob(".*.part")):
        with suppress(PermissionError):  # Windows refuses this while another process reads the file
            old.unlink(missing_ok=True)
