"""Read untrusted files: within limits, without waiting for a pipe, and without executing their content."""

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

from safetensors import SafetensorError, safe_open

from fmcli.errors import Action, CheckpointError, FmcliError, Remedy, is_utf8, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_HEADER_BYTES = 1 << 24  # safetensors; a pack of many members has a large header
MAX_LINE_CHARACTERS = 100_000  # TOML; tomllib needs 100 bytes of memory per character of a number
MAX_DOTS_PER_LINE = 100  # TOML; tomllib needs time and memory proportional to the square of a key's dots
MAX_NESTING = 64  # TOML; levels of tables and lists inside each other
MAX_CLASSES = 10_000  # a confusion matrix has the square of this number of entries
MAX_TENSORS = 100_000  # safetensors; enough for a thousand members
_MAX_NPY_HEADER_BYTES = 10_000  # NumPy has the same limit, but checks it after reading the whole header
_NONBLOCKING = getattr(os, "O_NONBLOCK", 0)  # missing on Windows, which has no named pipes in folders


def read_bytes(path: Path, limit: int, error: type[FmcliError] = FmcliError) -> bytes:
    """Return the content of a file, device or pipe. A pipe without a writer is empty.

    Args:
        path: The file.
        limit: Maximum size in bytes.
        error: Type of the exception to raise.

    Raises:
        FmcliError: The file cannot be read or is larger than the limit.
    """
    try:
        with open_nonblocking(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as problem:  # ValueError: the path contains NUL
        raise error(f"cannot read {printable(path)}: {getattr(problem, 'strerror', None) or problem}") from problem
    if len(content) > limit:
        raise error(f"{printable(path)} is larger than {limit} bytes, the limit for this kind of file")
    return content


def read_text(path: Path, limit: int, error: type[FmcliError]) -> str:
    """Return the content of a text file, without the byte order mark that some Windows editors write.

    Args:
        path: The file.
        limit: Maximum size in bytes.
        error: Type of the exception to raise.

    Raises:
        FmcliError: The file cannot be read, is larger than the limit, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{printable(path)} is not UTF-8 text: byte {problem.start} cannot be decoded") from problem


def open_nonblocking(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for a writer if it is a named pipe.

    Reading from the open pipe waits for data.

    Raises:
        OSError: The file cannot be read.
        ValueError: The path contains NUL.
    """

    def open_(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | _NONBLOCKING)
        if _NONBLOCKING:
            os.set_blocking(descriptor, True)
        return descriptor

    return open(path, "rb", opener=open_)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        ValueError: The text is not TOML, a line is too long, or tables nest too deeply.

    Example:
        >>> parse_toml('trainer.epochs = 3')
        {'trainer': {'epochs': 3}}
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_CHARACTERS or line.count(".") > MAX_DOTS_PER_LINE:
            raise ValueError(
                f"line {number} has more than {MAX_LINE_CHARACTERS} characters or {MAX_DOTS_PER_LINE} dots"
            )
    try:
        table = tomllib.loads(text)
        too_deep = _depth(table) > MAX_NESTING
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"tables and lists nest deeper than {MAX_NESTING} levels")
    return table


def _depth(value: Any) -> int:
    """Return the number of levels of tables and lists in a value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


@contextmanager
def open_safetensors(path: Path, framework: Literal["np", "pt"], expected: "FileFormat | None" = None) -> Iterator[Any]:
    """Open a checkpoint, pack or predictions file.

    Args:
        path: A safetensors file.
        framework: Type of the arrays to return: `np` for NumPy, `pt` for PyTorch.
        expected: Expected format, for the message about a missing file. The format is not checked.

    Raises:
        CheckpointError: The file is missing, or is not a complete safetensors file.
    """
    if not path.is_file():
        kind = "safetensors file" if expected is None else expected.kind.removeprefix("a ")
        raise CheckpointError(f"no {kind} at {printable(path)}", remedies=["train"])
    try:
        with open_tensors(path, framework) as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path)} is not a complete safetensors file: {printable(error)}",
            hint="if fmcli wrote the file, copy it again or train the member again",
        ) from error


@contextmanager
def open_tensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a safetensors file with `safe_open`, after checking that this does not wait and needs little memory.

    Raises:
        OSError, SafetensorError: The file cannot be read, or is not a safetensors file.
        ValueError: The file is a pipe or device, or has too large a header or too many tensors.
    """
    check_regular_file(path)
    with path.open("rb") as start:
        size = int.from_bytes(start.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {size} bytes; the limit is {MAX_HEADER_BYTES}")
        with safe_open(_utf8_path(path, start.fileno()), framework=framework) as file:
            if len(file.keys()) > MAX_TENSORS:
                raise ValueError(f"it has {len(file.keys())} tensors; the limit is {MAX_TENSORS}")
            yield file


def _utf8_path(path: Path, descriptor: int) -> str:
    """Return a UTF-8 path of an open file, as safetensors requires: its own path, or one through its descriptor."""
    name = os.fspath(path)
    if is_utf8(name):
        return name
    if os.name != "posix":
        raise ValueError("its path is not UTF-8")
    return f"/dev/fd/{descriptor}"


def read_metadata(path: Path, expected: "FileFormat | None" = None) -> dict[str, str]:
    """Return the metadata of a safetensors file. It is not verified, because the digest also covers the tensors.

    Args:
        path: The file.
        expected: See `open_safetensors`.

    Raises:
        CheckpointError: The file is missing, or is not a safetensors file.
    """
    with open_safetensors(path, "np", expected) as file:
        return dict(file.metadata() or {})


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of files that fmcli writes.

    Args:
        name: Name of the format. It ends in a version number, as in `fmcli-checkpoint-2`.
        kind: Kind of file for error messages, such as `a pack`.
        hint: What to do if a file is of a different kind.
        remedies: What to do if another version of fmcli wrote a file.
    """

    name: str
    kind: str
    hint: str | None = None
    remedies: Sequence[Remedy | Action] = ()

    def matches_any_version(self, name: object) -> bool:
        """Return whether a name is the name of this format in any version."""
        return str(name).startswith(self.name.rstrip("0123456789"))


def has_format(path: Path, expected: FileFormat) -> bool:
    """Return whether a safetensors file has a format, in any version.

    Raises:
        CheckpointError: The file is missing, or is not a safetensors file.
    """
    return expected.matches_any_version(read_metadata(path, expected).get("format"))


def check_format(path: Path, header: Mapping[str, object], expected: FileFormat) -> None:
    """Refuse a file of a different kind, and a file that another version of fmcli wrote.

    Args:
        path: The file.
        header: Values in the file. The entry `format` is the name of its format.
        expected: The format that the file must have.

    Raises:
        CheckpointError: The format differs.
    """
    found = str(header.get("format", ""))
    if found == expected.name:
        return
    if not expected.matches_any_version(found):
        raise CheckpointError(f"{printable(path)} is not {expected.kind} written by fmcli", hint=expected.hint)
    raise CheckpointError(
        f"{printable(path)} has the format {printable(found)!r}, but this version of fmcli reads {expected.name!r}",
        hint="use the version of fmcli that wrote the file, or create the file again",
        remedies=expected.remedies,
    )


def open_array(path: Path) -> "NDArray[Any]":
    """Map a `.npy` file into memory. Refuse pickled arrays and archives.

    Raises:
        Exception: The file is not a `.npy` file. NumPy parses the header as Python, which raises many types of errors.
    """
    import numpy as np

    check_regular_file(path)
    with path.open("rb") as file:
        check_npy_header(file)
    with np.errstate(over="ignore"):  # the number of elements overflows if the shape is hostile
        return np.lib.format.open_memmap(path, mode="r")


def check_npy_header(file: IO[bytes]) -> None:
    """Refuse a `.npy` file with a header that needs much memory.

    Args:
        file: The file, open at its start. It is rewound.

    Raises:
        ValueError: The header is too large.
    """
    start = file.read(12)  # these bytes contain the length of the header
    file.seek(0)
    if start[6:7] > b"\1" and int.from_bytes(start[8:], "little") > _MAX_NPY_HEADER_BYTES:
        raise ValueError(f"its header is larger than {_MAX_NPY_HEADER_BYTES} bytes")


def check_regular_file(path: Path) -> None:
    """Refuse a pipe, device or folder.

    Raises:
        OSError: The path does not exist.
        ValueError: The path is not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
