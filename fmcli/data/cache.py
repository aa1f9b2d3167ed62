"""The folder of what fmcli gets or unpacks once and uses again."""

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
    """Return where `fmcli data fetch` puts what it gets, and large files are unpacked."""
    wanted = os.environ.get("XDG_CACHE_HOME")  # which by itself counts on Linux alone
    return Path(wanted, "fmcli") if wanted else platformdirs.user_cache_path("fmcli")


def unpack_to_cache(path: Path, unpack: Callable[[BinaryIO], None], *, part: str = "") -> Path:
    """Return the unpacked form of a file, made unless it is there already; see `cached_file`.

    Args:
        path: Of the packed file, known by place, size and time of its last change.
        unpack: Writes the unpacked form.
        part: What of the file that is, where it holds several.

    Raises:
        DataError: There is no room for it.
        OSError: The packed file cannot be read.
    """
    now = path.stat()
    place = hashlib.sha256(os.fsencode(path.resolve()) + f"\0{part}".encode()).hexdigest()[:32]
    try:
        return cached_file(place, f"{now.st_size}-{now.st_mtime_ns}", unpack)
    except CacheError as error:
        raise DataError(
            f"{printable(path)} is too large for memory and cannot be unpacked: {printable(error)}",
            hint="name a folder where there is room with XDG_CACHE_HOME; or unpack it yourself",
        ) from error


def cached_file(name: str, state: str, make: Callable[[BinaryIO], None]) -> Path:
    """Return a file of the cache, made unless it is there already, whole; what was made of another state is removed.

    A file beside it has its SHA-256, as `sha256sum --check` reads it; one that no longer agrees is made again.

    Args:
        name: What the file is made from, as a part of its name.
        state: What that is like now, likewise.
        make: Writes it; what it raises goes through.

    Raises:
        CacheError: It cannot be written.
    """
    folder = cache_folder() / "unpacked"
    target = folder / f"{name}-{state}"
    if _is_whole(target):
        return target
    try:
        with locked(folder):
            if not _is_whole(target):
                _remove_old(folder, name)
                with open_atomic(target) as file:
                    make(file)
                write_atomic(_beside(target), _digest_line(target))
    except DataError:
        raise
    except (FmcliError, OSError) as error:
        raise CacheError(printable(error)) from error
    return target


def _is_whole(target: Path) -> bool:
    try:
        return _beside(target).read_bytes() == _digest_line(target)
    except OSError:
        return False


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _digest_line(target: Path) -> bytes:
    with target.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {target.name}\n".encode()


def _remove_old(folder: Path, name: str) -> None:
    """Remove what was made before, and what killed processes left; nobody writes now."""
    for old in (*folder.glob(f"{name}-*"), *folder.glob(".*.part")):
        with suppress(PermissionError):  # Windows, while another process reads it
            old.unlink(missing_ok=True)
