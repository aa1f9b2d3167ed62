"""The folder of what fmcli gets or unpacks once and uses again."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs

from fmcli.errors import DataError, FmcliError, printable
from fmcli.files import open_atomic
from fmcli.locks import locked


def cache_folder() -> Path:
    """Return where `fmcli data fetch` puts what it gets, and large files are unpacked."""
    return platformdirs.user_cache_path("fmcli")


def unpacked_once(path: Path, unpack: Callable[[BinaryIO], None]) -> Path:
    """Return the unpacked form of a file, made unless it is there already; that of an earlier file is removed.

    Args:
        path: Of the packed file, known by place, size and time of its last change.
        unpack: Writes the unpacked form.

    Raises:
        DataError: There is no room for it.
        OSError: The packed file cannot be read.
    """
    folder = cache_folder() / "unpacked"
    now = path.stat()
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    target = folder / f"{place}-{now.st_size}-{now.st_mtime_ns}"
    try:
        with locked(folder):
            if not target.is_file():
                _remove_old(folder, place)
                with open_atomic(target) as file:
                    unpack(file)
    except DataError:
        raise
    except (FmcliError, OSError) as error:
        raise DataError(
            f"{printable(path)} is too large for memory and cannot be unpacked: {printable(error)}",
            hint="unpack it with gunzip where there is room, or name a folder with XDG_CACHE_HOME",
        ) from error
    return target


def _remove_old(folder: Path, place: str) -> None:
    """Remove what earlier files were unpacked to, and what killed processes left; nobody unpacks now."""
    for old in (*folder.glob(f"{place}-*"), *folder.glob(".*.part")):
        with suppress(PermissionError):  # Windows, while another process reads it
            old.unlink(missing_ok=True)
