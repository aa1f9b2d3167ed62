"""Files that appear whole or not at all."""

import errno
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fmcli.errors import FmcliError, printable

_CANNOT_FLUSH = (
    errno.EACCES,
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EPERM,
)  # of a folder; its files are whole all the same
_LONGEST_NAME = 100  # bytes; file systems take 255, and a part may be appended
_TAKEN = ("ensemble.toml", "recipe.toml")  # stand beside members' folders


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk and rename it into place.

    Args:
        path: Where the file is to stand. Its folder is made if missing.
        content: The bytes.

    Raises:
        FmcliError: The folder cannot be written, or the disk is full; a file that stood there before is intact.
    """
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which appears in its place when all of it is written; see `write_atomic`."""
    try:
        _make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            _flush_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)  # a signal may come between renaming and here
            raise
    except OSError as error:
        raise FmcliError(
            f"cannot write {printable(path)}: {error.strerror or error}",
            hint="choose a folder that can be written and has room, e.g. with --output",
        ) from error


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each of which survives a loss of power."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Let a new name in a folder survive a loss of power, where system, file system and rights allow that."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: what is written into the one that is given appears when all of it is there.

    Args:
        folder: Not there yet, or empty.

    Raises:
        FmcliError: It cannot be written.
    """
    there = folder.is_dir()
    try:
        home = folder if there else folder.parent
        home.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}."[:_LONGEST_NAME], suffix=".part", dir=home))
        try:
            yield part
            if there:
                for path in part.iterdir():
                    path.rename(folder / path.name)
            else:
                part.chmod(0o777 & ~_umask())
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise FmcliError(
            f"cannot write {printable(folder)}: {error.strerror or error}",
            hint="choose a folder that can be written and has room, e.g. with --output",
        ) from error


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a plain folder's name for each member, that no other has on any file system.

    Args:
        names: Of members, whatever they are made of.

    Returns:
        Words of letters, digits, `_`, `.` and `-` of about 100 bytes at most, different also in lower case, none of
        which is hidden or stands for what else lies beside members' folders.

    Example:
        >>> folder_names(["one/k3", "one-K3", "../..", "recipe.toml"])
        ['one-k3', 'one-K3-2', 'member', 'recipe.toml-2']
    """
    taken = set(_TAKEN)
    folders = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-.")
        plain = plain.encode()[:_LONGEST_NAME].decode(errors="ignore").rstrip("-.") or "member"
        number, folder = 1, plain
        while folder.casefold() in taken:
            number += 1
            folder = f"{plain}-{number}"
        taken.add(folder.casefold())
        folders.append(folder)
    return folders


def order_metadata(content: bytes) -> bytes:
    """Return the content of a safetensors file with its metadata sorted by name.

    safetensors writes the metadata in an order that differs between processes. Sorting it means that two equal training
    runs write byte-identical files, which users can compare with `cmp` or a checksum.

    Args:
        content: A safetensors file that has metadata.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format requires it, so that tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files, and what a killed process left of them; and their folder where nothing else is in it."""
    names = list(names)
    remove_torn(folder, names)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def remove_torn(folder: Path, names: Iterable[str]) -> None:
    """Remove what processes left that were killed while they wrote files of these names with `write_atomic`.

    None may be writing now.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.part"):
            path.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's file mode mask (there is no way to read it without setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_place(path: Path) -> None:
    """Find out before hours of work whether a file could be written.

    Args:
        path: Of the file.

    Raises:
        FmcliError: A folder stands there, or a file where a folder would have to be, or no right to write.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise FmcliError(f"cannot write {printable(path)}: a folder stands there", hint="give a file's name")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise FmcliError(
            f"cannot write {printable(path)}: {printable(folder)} takes no files", hint="choose another place"
        )
