"""Read files from other people: with limits, without waiting for a pipe, and without executing anything."""

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

from safetensors import SafetensorError, safe_open

from fmcli.errors import Action, CheckpointError, FmcliError, Remedy, is_utf8, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_HEADER_BYTES = 1 << 24  # of a safetensors file; a pack of many members has a large one
MAX_LINE_CHARACTERS = 100_000  # tomllib needs 100 bytes of memory per character of a number
MAX_DOTS_PER_LINE = 100  # in TOML: tomllib needs time and memory proportional to the square of a key's dots
MAX_NESTING = 64  # levels of TOML tables and lists inside each other
MAX_CLASSES = 10_000  # a confusion matrix has the square of this number of entries
MAX_TENSORS = 100_000  # in a safetensors file; enough for a thousand members
_MAX_NPY_HEADER_BYTES = 10_000  # the limit of NumPy, which reads the whole header before it checks
_NONBLOCKING = getattr(os, "O_NONBLOCK", 0)  # missing on Windows, which has no named pipes in folders


def read_bytes(path: Path, limit: int, error: type[FmcliError] = FmcliError) -> bytes:
    """Read a whole file, device or pipe; a pipe without a writer is empty.

    Args:
        path: The file.
        limit: Maximum size in bytes.
        error: Exception type to raise.

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
    """Read a text file like `read_bytes`, without the byte order mark that some Windows editors write.

    Raises:
        FmcliError: The file cannot be read, is larger than the limit, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{printable(path)} is not UTF-8 text: byte {problem.start}") from problem


def open_nonblocking(path: Path) -> BinaryIO:
    """Open a file for reading; do not wait until another process opens the other end of a pipe.

    Reading from an open pipe does wait for data.

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
        ValueError: The text is not TOML, has too long a line, or nests too deeply.

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
    """Return the levels of tables and lists in a value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


@contextmanager
def open_safetensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a checkpoint, pack or predictions file.

    Args:
        path: A safetensors file.
        framework: Type of the arrays: `np` for NumPy, `pt` for PyTorch.

    Raises:
        CheckpointError: The file is missing, or is not a complete safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {printable(path)}", remedies=["train"])
    try:
        with open_tensors(path, framework) as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path)} is not a complete safetensors file: {printable(error)}",
            hint="the file is truncated or has another format; copy it again or train again",
        ) from error


@contextmanager
def open_tensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a safetensors file with `safe_open`, after checking that this neither waits nor needs much memory.

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
    """Return the path if it is UTF-8, as safetensors requires, otherwise another path of the same open file."""
    name = os.fspath(path)
    if is_utf8(name):
        return name
    if os.name != "posix":
        raise ValueError("its path is not UTF-8")
    return f"/dev/fd/{descriptor}"


def read_metadata(path: Path) -> dict[str, str]:
    """Read only the metadata of a safetensors file; it is not verified, since its digest also covers the tensors.

    Raises:
        CheckpointError: The file is missing, or is not a safetensors file.
    """
    with open_safetensors(path, "np") as file:
        return dict(file.metadata() or {})


def check_format(
    path: Path,
    header: Mapping[str, object],
    expected: str,
    *,
    kind: str,
    hint: str | None = None,
    remedies: Sequence[Remedy | Action] = (),
) -> None:
    """Refuse a file of another kind, or one that another version of fmcli wrote.

    Args:
        path: The file.
        header: Its text; `format` names the format.
        expected: A format name that ends in its version, such as `fmcli-checkpoint-2`.
        kind: The expected kind of file, with its article.
        hint: What to do if the file is of another kind.
        remedies: What to do if another version wrote the file.

    Raises:
        CheckpointError: The format is not the expected one.
    """
    found = str(header.get("format", ""))
    if found == expected:
        return
    is_other_version = found.startswith(expected.rstrip("0123456789"))
    raise CheckpointError(
        f"{printable(path)} is not {kind} of this fmcli version: its format is {printable(found)!r}, "
        f"expected {expected!r}",
        hint="another version of fmcli wrote it: use that version, or create the file again"
        if is_other_version
        else hint,
        remedies=remedies if is_other_version else (),
    )


def open_array(path: Path) -> "NDArray[Any]":
    """Map a `.npy` file into memory; refuse pickled arrays and archives.

    Raises:
        Exception: The file is not a `.npy` file. NumPy parses the header as Python, which fails in many ways.
    """
    import numpy as np

    check_regular_file(path)
    with path.open("rb") as file:
        check_npy_header(file)
    with np.errstate(over="ignore"):  # the product of a hostile shape overflows
        return np.lib.format.open_memmap(path, mode="r")


def check_npy_header(file: IO[bytes]) -> None:
    """Refuse a `.npy` file whose header needs much memory.

    Args:
        file: The file, open at its start, to which it is rewound.

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
