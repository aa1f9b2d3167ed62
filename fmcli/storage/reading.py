"""Reading what others wrote: nothing without a limit, nothing that waits, nothing that is run."""

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from safetensors import SafetensorError, safe_open

from fmcli.errors import Action, CheckpointError, FmcliError, Remedy, is_utf8, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_HEADER = 1 << 24  # bytes: of a safetensors file, all members of a large pack
MOST_DOTS = 32  # in a key of TOML: time and memory of tomllib grow with their square
DEEPEST = 64  # tables and lists within each other
MOST_CLASSES = 10_000  # a confusion matrix has the square of that
MOST_TENSORS = 100_000  # in a safetensors file: a thousand members
_LONGEST_WORD = 1000  # letters of a bare key or number of TOML, whose pattern takes 100 bytes for each
ARRAY_START = 12  # bytes of a `.npy` file that say how long its header is
_ARRAY_HEADER = 10_000  # bytes: NumPy's own limit, which it heeds only after reading all of it
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # Windows has no such pipes
_STRING = re.compile(r""""(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?""", re.DOTALL)
# A comment; a string of several lines; a long word; keys with dots, or another string; else anything.
# What is open ends with the text, so that nothing is looked at twice.
_TOML = re.compile(
    rf"""\#[^\n]*+
    |\"{{3}}(?:[^"\\]|\\.|"{{1,2}}(?!"))*+(?:\"{{3,5}}|.?\Z)|'{{3}}(?:[^']|'{{1,2}}(?!'))*+(?:'{{3,5}}|\Z)
    |(?P<word>[\w-]{{{_LONGEST_WORD + 1}}})
    |(?P<key>(?:(?:[\w-]{{1,{_LONGEST_WORD}}}+(?![\w-])|{_STRING.pattern})[ \t]*+\.?[ \t]*+)++)
    |[^\w"'\#-]++|.""",
    re.VERBOSE | re.DOTALL,
)


def read_bytes(path: Path, limit: int, error: type[FmcliError] = FmcliError) -> bytes:
    """Read a file, a device, or a pipe to its end; one that nobody writes to is empty.

    Args:
        path: Of the file.
        limit: In bytes.
        error: What to raise.

    Raises:
        FmcliError: It cannot be read, or holds more.
    """
    try:
        with open_at_once(path) as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as problem:  # ValueError: NUL in its name
        raise error(f"cannot read {printable(path)}: {getattr(problem, 'strerror', None) or problem}") from problem
    if len(content) > limit:
        raise error(f"{printable(path)} is larger than {limit} bytes, the most for such a file")
    return content


def read_text(path: Path, limit: int, error: type[FmcliError]) -> str:
    """Read a text as `read_bytes` does, without the byte order mark that Windows may put before it.

    Raises:
        FmcliError: It cannot be read, holds more, or is not UTF-8.
    """
    try:
        return read_bytes(path, limit, error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{printable(path)} is not UTF-8 text: byte {problem.start}") from problem


def open_at_once(path: Path) -> BinaryIO:
    """Open a file for reading; of a pipe, do not wait until somebody opens its other end, but for what they write.

    Raises:
        OSError: It cannot be read.
        ValueError: Its name cannot be.
    """

    def open_(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | _AT_ONCE)
        if _AT_ONCE:
            os.set_blocking(descriptor, True)
        return descriptor

    return open(path, "rb", opener=open_)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the table that a TOML text is.

    Raises:
        ValueError: It is no TOML, or nests deeper than anything of ours.

    Example:
        >>> parse_toml('trainer.epochs = 3')
        {'trainer': {'epochs': 3}}
    """
    for token in _TOML.finditer(text):
        key = token["key"]
        if key and key.count(".") > MOST_DOTS and _STRING.sub("", key).count(".") > MOST_DOTS:
            raise ValueError(f"a key has more than {MOST_DOTS} dots")
        if token["word"]:
            raise ValueError(f"a key or number has more than {_LONGEST_WORD} letters")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from error
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise ValueError(f"it nests deeper than {DEEPEST} levels")
    return table


@contextmanager
def open_safetensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a safetensors file of checkpoints.

    Args:
        path: Of the file.
        framework: Whose arrays it is to give: NumPy's or PyTorch's.

    Raises:
        CheckpointError: It is not there, or not a whole safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {printable(path)}", hint="fmcli train --recipe quick makes one")
    try:
        with open_tensors(path, framework) as file:
            yield file
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{printable(path)} is not a whole safetensors file: {printable(error)}",
            hint="it was cut short or is of another format; train it again, or copy it again",
        ) from error


@contextmanager
def open_tensors(path: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """Open a safetensors file as `safe_open` does, but for what would wait or take much memory.

    Raises:
        OSError, SafetensorError: It cannot be read, or is no such file.
        ValueError: It is a pipe or a device, or its header or number of tensors is too large.
    """
    check_regular(path)
    with path.open("rb") as start:
        size = int.from_bytes(start.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"its header would have {size} bytes; the limit is {LARGEST_HEADER}")
        with safe_open(_name_in_utf8(path, start.fileno()), framework=framework) as file:
            if len(file.keys()) > MOST_TENSORS:
                raise ValueError(f"it has {len(file.keys())} tensors; the limit is {MOST_TENSORS}")
            yield file


def _name_in_utf8(path: Path, descriptor: int) -> str:
    """Return a file's name, or another of the same file where safetensors would not take it."""
    name = os.fspath(path)
    if is_utf8(name):
        return name
    if os.name != "posix":
        raise ValueError("its name is not UTF-8")
    return f"/dev/fd/{descriptor}"


def read_metadata(path: Path) -> dict[str, str]:
    """Read the text of a safetensors file alone, unverified: the digest in it is over the tensors, too.

    Raises:
        CheckpointError: It is not there, or not a safetensors file.
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
        kind: What the file should be, with its article.
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
    """Open a `.npy` file, which stays on the disk until used; never a pickled one, or an archive.

    Raises:
        Exception: It is no such file: its header is parsed as Python and fails in as many ways.
    """
    import numpy as np

    check_regular(path)
    with path.open("rb") as file:
        check_array_start(file.read(ARRAY_START))
    with np.errstate(over="ignore"):  # shapes whose product is more than a number holds
        return np.lib.format.open_memmap(path, mode="r")


def check_array_start(start: bytes) -> None:
    """Refuse a `.npy` file whose header would take much memory.

    Args:
        start: Its first `ARRAY_START` bytes.

    Raises:
        ValueError: It is refused.
    """
    if start[6:7] > b"\1" and int.from_bytes(start[8:], "little") > _ARRAY_HEADER:
        raise ValueError(f"its header is larger than {_ARRAY_HEADER} bytes")


def check_regular(path: Path) -> None:
    """Refuse what is no file, as a pipe or a device.

    Raises:
        OSError: It is not there.
        ValueError: It is refused.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")
