"""Write files and folders atomically: they appear complete or not at all."""

import errno
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fmcli.errors import FmcliError, printable

# Errors of file systems that cannot flush a folder. They can be ignored, because the files themselves are flushed.
_FLUSH_NOT_SUPPORTED = (errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_MAX_NAME_BYTES = 100  # file systems allow 255, but some names get a prefix and a suffix
_RESERVED_NAMES = ("ensemble.toml", "recipe.toml")  # files that fmcli writes next to members' folders


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file: write a temporary file in the same folder, flush it to disk and give it the final name.

    Args:
        path: The file. Its folder is created if missing.
        content: The content of the file.

    Raises:
        FmcliError: The folder is not writable, or the disk is full. An existing file is left unchanged.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. It gets its final name when the block ends; see `write_atomic`."""
    part = _partial_path(path.parent, path.name)
    try:
        _make_folder(path.parent)
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _flush_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)  # missing if a signal arrived after the rename
            raise
    except OSError as error:
        raise _write_error(path, error) from error


def _partial_path(folder: Path, name: str) -> Path:
    """Return a unique path for a file or folder of this name while it is incomplete."""
    short = os.fsencode(name)[:_MAX_NAME_BYTES].decode(errors="ignore")
    return folder / f".{short}.{secrets.token_hex(4)}.part"


def _write_error(path: Path, error: OSError) -> FmcliError:
    return FmcliError(
        f"cannot write {printable(path)}: {error.strerror or error}",
        hint="choose a writable folder on a disk with free space",
        remedies=["output"],
    )


def _make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and flush each of them to disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a new file survives a power failure."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _FLUSH_NOT_SUPPORTED:
            raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. Its content appears in the real folder when the block ends without an error.

    Args:
        folder: The real folder. It must be missing or empty.

    Raises:
        FmcliError: The folder is not writable.
    """
    exists = folder.is_dir()
    try:
        home = folder if exists else folder.parent
        home.mkdir(parents=True, exist_ok=True)
        part = _partial_path(home, folder.name)
        part.mkdir()
        try:
            yield part
            if exists:
                for path in part.iterdir():
                    path.rename(folder / path.name)
            else:
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise _write_error(folder, error) from error


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a folder name for each member. The names are valid and unique on every file system.

    Args:
        names: The members' names. They may contain any characters.

    Returns:
        Names of letters, digits, `_`, `.` and `-`, at most about 100 bytes long. They differ even on file systems that
        ignore case, do not start with a dot, and are not names of files that fmcli writes next to members' folders.

    Example:
        >>> folder_names(["one/k3", "one-K3", "../..", "recipe.toml"])
        ['one-k3', 'one-K3-2', 'member', 'recipe.toml-2']
    """
    taken = set(_RESERVED_NAMES)
    folders = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-.")
        plain = plain.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").rstrip("-.") or "member"
        number, folder = 1, plain
        while folder.casefold() in taken:
            number += 1
            folder = f"{plain}-{number}"
        taken.add(folder.casefold())
        folders.append(folder)
    return folders


def order_metadata(content: bytes) -> bytes:
    """Return the content of a safetensors file with its metadata sorted by name.

    safetensors writes metadata in an order that differs between processes. With sorted metadata, two equal training
    runs write byte-identical files, which users can compare with `cmp` or a checksum.

    Args:
        content: A safetensors file that has metadata.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files and the partial copies that killed processes left. Then remove the folder if it is empty."""
    names = list(names)
    remove_partial_files(folder, names)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def remove_partial_files(folder: Path, names: Iterable[str]) -> None:
    """Remove partial copies that killed processes left when they wrote files of these names with `write_atomic`.

    No other process may be writing these files now.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.part"):
            path.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the hours of work that produce its content.

    Raises:
        FmcliError: The path is a folder, a parent is not a folder, or the folder is not writable.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise FmcliError(f"cannot write {printable(path)}: it is a folder", hint="give the name of a file")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise FmcliError(
            f"cannot write {printable(path)}: {printable(folder)} is not a writable folder", remedies=["output"]
        )
