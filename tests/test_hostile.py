"""Hostile files: readers refuse them with little work and memory, and print their texts safely.

`fuzz.py` mutates valid files.
"""

import gzip
import io
import json
import os
import pickle
import random
import re
import signal
import struct
import sys
import threading
import time
import tomllib
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fmcli.checkpoints.checkpoint import load_checkpoint
from fmcli.checkpoints.history import MAX_HISTORY_BYTES, read_history
from fmcli.checkpoints.pack import read_pack, unpack
from fmcli.cli import run
from fmcli.cli.predict import MAX_PATH_BYTES
from fmcli.data import load_source
from fmcli.data.arrays import MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO, MAX_IN_MEMORY_BYTES
from fmcli.data.image_files import MAX_IMAGE_FILE_BYTES, MAX_IMAGE_PIXELS, MAX_JPEG_SCANS
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.data.sources.idx import MAX_CLASSES_FILE_BYTES
from fmcli.ensemble.external import MAX_LABELS_BYTES, MAX_TABLE_BYTES, read_external, read_labels
from fmcli.ensemble.file import MAX_FILE_BYTES as MAX_ENSEMBLE_BYTES
from fmcli.ensemble.file import read_ensemble_file
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import CheckpointError, DataError, FmcliError, RecipeError, printable
from fmcli.recipe import DataSpec, load_recipe
from fmcli.recipe.families.sequential import MAX_LAYERS
from fmcli.recipe.load import MAX_RECIPE_BYTES
from fmcli.recipe.recipe import MAX_MEMBERS
from fmcli.recipe.resolve import MAX_TRIED_VALUES
from fmcli.storage.reading import (
    MAX_CLASSES,
    MAX_DOTS_PER_LINE,
    MAX_HEADER_BYTES,
    MAX_LINE_CHARACTERS,
    MAX_NESTING,
    MAX_TENSORS,
    parse_toml,
    read_bytes,
    read_text,
)
from tests import fuzz
from tests.helpers import draw_quadrants, write_idx_folder

CPU = torch.device("cpu")
MAX_WORK = 100.0  # times the reference work: two seconds where that takes 20 ms
MAX_MEMORY_BYTES = 200 << 20
DEADLINE_S = 120  # for a reader that waits instead of computing
TERABYTE = 1 << 40
Make = Callable[[Path], object]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@dataclass(frozen=True)
class Outcome:
    """Result of reading a file in another process.

    Args:
        kind: Name of the error, `answer`, or `killed`.
        bases: Names of the classes of the error.
        message: Message of the error.
        work: CPU time, as a multiple of that of `fuzz.reference_work`.
        memory: Growth of the process in bytes.
    """

    kind: str
    bases: list[str] = field(default_factory=list)
    message: str = ""
    work: float = 0.0
    memory: int = 0


@cache
def reference_seconds() -> float:
    return fuzz.cpu_seconds(fuzz.reference_work)


def measure(read: Callable[[], object]) -> Outcome:
    """Read in another process, and kill it if it waits."""
    reference = reference_seconds()
    result_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(DEADLINE_S)
        kind, bases, message = "answer", [], ""

        def read_and_catch() -> None:
            nonlocal kind, bases, message
            try:
                read()
            except BaseException as error:
                kind, bases = type(error).__name__, [base.__name__ for base in type(error).__mro__]
                message = str(error) if isinstance(error, FmcliError) else traceback.format_exc()

        memory = fuzz.peak_memory()
        seconds = fuzz.cpu_seconds(read_and_catch)
        memory = fuzz.peak_memory() - memory
        if seconds > MAX_WORK * reference:  # the machine may have become slower
            reference = max(reference, fuzz.cpu_seconds(fuzz.reference_work))
        work = seconds / reference
        os.write(write_end, json.dumps([kind, bases, message[:20_000], work, memory]).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(result_end, "rb") as file:
        result = file.read()
    os.waitpid(child, 0)
    return Outcome(*json.loads(result)) if result else Outcome("killed")


# --- hostile files -------------------------------------------------------------------------------------------------


def sparse(size: int, start: bytes = b"") -> Make:
    """Write a sparse file: it has a size but takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


NOT_FILES = {
    "a pipe without a writer": os.mkfifo,
    "a device that never ends": link("/dev/zero"),
    "a circle of links": lambda path: path.symlink_to(path.name),
    "a folder": Path.mkdir,
}


def edited_seed(reader: str, change: Callable[[fuzz.Parts], object], seed: int = 0) -> Make:
    """Write a valid input with edited parts and with correct lengths, checksums and digests."""

    def make(path: Path) -> None:
        folder = path.parent / "seeds"
        folder.mkdir()
        tools = fuzz.READERS[reader]
        parts = tools.take_apart(tools.seeds(folder)[seed])
        change(parts)
        path.write_bytes(tools.put_together(parts))

    return make


def with_json(name: str, change: Callable[[dict], object], reader: str = "safetensors", seed: int = 0) -> Make:
    """Write a safetensors file with an edit in the JSON of a named text or, without a name, of its list of tensors."""

    def change_parts(parts: fuzz.Parts) -> None:
        start = f"{name}\0".encode() if name else b"{"
        index = next(index for index, part in enumerate(parts) if part.startswith(start))
        value = json.loads(parts[index].split(b"\0")[-1])
        change(value)
        parts[index] = (start if name else b"") + json.dumps(value).encode()

    return edited_seed(reader, change_parts, seed)


def with_text(parts: fuzz.Parts, name: str, text: str) -> None:
    """Replace a text of a safetensors file."""
    index = next(index for index, part in enumerate(parts) if part.startswith(f"{name}\0".encode()))
    parts[index] = f"{name}\0{text}".encode()


def assign(table: object, *path: object, to: object) -> None:
    """Set the value at a path of keys and indices."""
    for step in path[:-1]:
        table = table[step]
    table[path[-1]] = to


def idx(shape: tuple[int, ...], content: bytes = b"", code: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + content


def labels_file(content: bytes) -> Make:
    """Write hostile labels next to valid images."""
    return lambda path: path.with_name("train-labels-idx1-ubyte").write_bytes(content)


def names_file(make: Make) -> Make:
    return lambda path: make(path.with_name("classes.txt"))


IDX = {
    "terabytes in twelve bytes": idx((1 << 20, 1 << 10, 1 << 10)),
    "gigabytes in twelve bytes": idx((7 << 10, 1 << 10, 1 << 10)),
    "a side of 0 next to two huge ones": idx((0, 2**32 - 1, 2**32 - 1)),
    "a side of 0 at the end": idx((2**32 - 1, 2**32 - 1, 2**32 - 1, 0)),
    "more than the limit, and the file is that long": sparse(9 << 30, idx((9 << 10, 1 << 10, 1 << 10))),
    "fewer bytes than the file has": sparse(TERABYTE, idx((4, 6, 6))),
    "255 sides": b"\0\0\x08\xff" + 1020 * b"\xff",
    "doubles": idx((1, 1, 1), 8 * b"\xff", code=0x0E),
    "two thousand million classes": labels_file(idx((4,), struct.pack(">4i", 0, 1, 2, 2**31 - 1), code=0x0C)),
    "negative labels": labels_file(idx((4,), struct.pack(">4i", 0, 1, 2, -1), code=0x0C)),
    "labels of terabytes": labels_file(idx((2**32 - 1, 2**10, 2**8))),
    "images of one huge side": idx((4, 1, 1 << 23), bytes(4 << 23)),
    "names that never end": names_file(sparse(TERABYTE)),
    "names that are not text": names_file(lambda path: path.write_bytes(b"\xff\xfe")),
}
ZEROS = gzip.compress(bytes(64 << 20), mtime=0)  # one of several gzip members
GZIP = {
    "two gigabytes of nothing": gzip.compress(idx((2 << 11, 1 << 10, 1 << 9))) + 32 * ZEROS,
    "more than the header claims": gzip.compress(idx((4, 6, 6))) + 32 * ZEROS,
    "terabytes": gzip.compress(idx((1 << 20, 1 << 10, 1 << 10))),
    "gigabytes": gzip.compress(idx((7 << 10, 1 << 10, 1 << 10), b"x")),
    "gzip within gzip": gzip.compress(gzip.compress(idx((4, 6, 6), bytes(144)))),
    "cut short": gzip.compress(idx((4, 6, 6), os.urandom(144)))[:-20],
    "other content than its checksum": gzip.compress(idx((4, 6, 6), bytes(144)))[:-8] + bytes(8),
    "trailing bytes": gzip.compress(idx((4, 6, 6), bytes(144))) + b"PK\3\4",
    "a name that never ends": b"\x1f\x8b\x08\x08" + bytes(6) + (1 << 20) * b"a",
    "an unknown method": b"\x1f\x8b\x09\0" + bytes(100),
    "a thousand empty members": gzip.compress(b"", mtime=0) * 1000,
}


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    return fuzz.npy_from([bytes([version, 0]), header.encode(), content])


def npy_of(shape: str, dtype: str = "'|u1'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


def pickled(path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(path.with_name("sprung")),)

    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(64 << 20))


NPY = {
    "terabytes": npy(npy_of("(1099511627776, 10)", "'<f4'")),
    "more than 64 bits can count": npy(npy_of("(4611686018427387904, 4)", "'<f4'"), bytes(64)),
    "a negative side": npy(npy_of("(-1, 4)", "'<f4'"), bytes(64)),
    "a header of four gigabytes": sparse(5 << 30, b"\x93NUMPY\x02\0\xff\xff\xff\xff{"),
    "a header of four gigabytes in version 3": sparse(5 << 30, b"\x93NUMPY\x03\0\xff\xff\xff\xff{"),
    "Python objects": pickled,
    "an archive": zipped,
    "deep nesting": npy(npy_of("(" * 5000)),
    "many minus signs": npy(npy_of("-" * 9000 + "1")),
    "a program": npy(npy_of("__import__('os').abort()")),
    "items of gigabytes": npy(npy_of("(3,)", "'|V2147483647'"), bytes(64)),
    "records": npy(npy_of("(3,)", "[('a', '<f4'), ('b', '<i8')]"), bytes(64)),
    "a terabyte of labels, and the file is that long": sparse(
        TERABYTE + 128, npy(npy_of(f"({TERABYTE},)").ljust(117) + "\n")
    ),
    "an image of a terabyte, and the file is that long": sparse(
        TERABYTE + 128, npy(npy_of("(1048576, 1048576)").ljust(117) + "\n")
    ),
    "a terabyte of probabilities": sparse(TERABYTE + 128, npy(npy_of("(137438953472, 2)", "'<f4'").ljust(117) + "\n")),
}
IMAGES_OF_NPZ = npy(npy_of("(4, 6, 6)"), bytes(144))
LABELS_OF_NPZ = npy(npy_of("(4,)"), bytes(range(4)))


def npz(method: int = zipfile.ZIP_DEFLATED, **changes: bytes) -> bytes:
    """Return an archive of four images of 6×6 in both splits, with some arrays replaced."""
    arrays = {"x_train": IMAGES_OF_NPZ, "y_train": LABELS_OF_NPZ, "x_test": IMAGES_OF_NPZ, "y_test": LABELS_OF_NPZ}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in {**arrays, **changes}.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def zip_bomb(path: Path) -> None:
    """Write a quarter of a gigabyte that is packed to almost nothing."""
    path.write_bytes(npz(x_train=npy(npy_of("(262144, 32, 32)"), bytes(256 << 20))))


NPZ = {
    "gigabytes of nothing": zip_bomb,
    "terabytes in a header": npz(x_train=npy(npy_of("(1048576, 1024, 1024)"), b"x")),
    "gigabytes in the directory of the archive": npz(x_train=IMAGES_OF_NPZ + b"x").replace(
        struct.pack("<I", len(IMAGES_OF_NPZ) + 1), struct.pack("<I", 4_000_000_000)
    ),
    "more than the header claims": npz(x_train=IMAGES_OF_NPZ + bytes(16 << 20)),
    "a pickle": npz(y_train=npy(npy_of("(4,)", "'|O'"), pickle.dumps([0, 1, 2, 3]))),
    "records": npz(y_train=npy(npy_of("(4,)", "[('a', [('b', '<i8')])]"), bytes(32))),
    "a header that never ends": npz(x_train=b"\x93NUMPY\2\0\xff\xff\xff\x7f{"),
    "deep nesting": npz(x_train=npy(npy_of("(" * 5000))),
    "numbers of no bytes": npz(x_train=npy(npy_of("(4, 6, 6)", "'|V0'"))),
    "a negative side": npz(x_train=npy(npy_of("(-4, -6, 6)"), bytes(144))),
    "an unsupported compression": npz(zipfile.ZIP_LZMA),
    "very many files": lambda path: path.write_bytes(npz(**{f"{number}": b"" for number in range(30_000)})),
    "cut short": npz()[:-30],
    "two thousand million classes": npz(y_train=npy(npy_of("(4,)", "'<i4'"), struct.pack("<4i", 0, 1, 2, 2**31 - 1))),
    "bytes before and after": b"PK\5\6" + npz() + b"PK\5\6",
}


def chunks(*parts: bytes) -> bytes:
    return fuzz.png_from([b"\x89PNG\r\n\x1a\n", *parts])


def png(width: int, height: int, *parts: bytes, rows: bytes = bytes(100)) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return chunks(header, *parts, b"IDAT" + rows, b"IEND")


PNG = {
    "a thousand million pixels": png(30_000, 40_000),
    "more pixels than can be counted": png(2**31 - 1, 2**31 - 1),
    "no pixels": png(0, 5),
    "fewer rows than claimed": png(8, 8, rows=bytes(20)),
    "64 megapixels of nothing": png(8000, 8000, rows=b""),
    "a text that is a decompression bomb": png(8, 8, b"zTXta\0\0" + zlib.compress(bytes(100 << 20))),
    "texts that are a decompression bomb together": png(8, 8, *100 * [b"zTXta\0\0" + zlib.compress(bytes(1 << 20))]),
    "a chunk of gigabytes": b"\x89PNG\r\n\x1a\n" + b"\x7f\xff\xff\xffIHDR",
    "a checksum that is wrong": png(8, 8)[:29] + bytes(4) + png(8, 8)[33:],
    "a program in PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    "a drawing that names files": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "a terabyte": sparse(TERABYTE, png(8, 8)),
}


def jpeg(width: int = 8, height: int = 8, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", **options)
    content = file.getvalue()
    frame = content.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :]


def scans(count: int) -> bytes:
    """Return a progressive JPEG of 64 megapixels that repeats its last scan."""
    content = jpeg(8000, 8000, progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


JPEG = {
    "four thousand million pixels": jpeg(65_500, 65_500),
    "no pixels": jpeg(0, 0),
    "repeated scans": scans(10_000),
    "repeated scans after a false end": scans(0)[:-2] + b"\xff\xfe\x00\x04\xff\xd9" + scans(100)[2:],
    "only a start marker": b"\xff\xd8\xff",
    "no tables": b"\xff\xd8" + jpeg()[jpeg().index(b"\xff\xc0") :],
    "a part that is longer than the file": b"\xff\xd8\xff\xe1\xff\xffExif\0\0",
    "an end right after the start": b"\xff\xd8\xff\xd9",
    "only markers": b"\xff\xd8" + 100_000 * b"\xff",
    "a terabyte": sparse(TERABYTE, jpeg()),
    "another program's file": b"\x7fELF" + bytes(1000),
}


def tiff(*entries: tuple[int, int, int, int], after: int = 0) -> bytes:
    """Return a TIFF file with tags, each of number, type, count and value."""
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", after) + bytes(64)


def grey_tiff(width: int, height: int, *more: tuple[int, int, int, int], compression: int = 1) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    return tiff(*tags, (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 8), *more)


IMAGES = {
    "TIFF of a thousand million pixels": grey_tiff(40_000, 40_000),
    "TIFF of 64 megapixels in eight bytes": grey_tiff(8000, 8000, compression=5),
    "TIFF whose tag has gigabytes": tiff((256, 4, 2**30, 8), (257, 4, 2**30, 8)),
    "TIFF without an end": b"II*\0\x08\0\0\0\xff\xff",
    "TIFF in itself": tiff(after=8),
    "WEBP of 268 megapixels": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 2**28 - 1) + bytes(9),
    "WEBP of a terabyte": sparse(TERABYTE, b"RIFF\xff\xff\xff\xffWEBPVP8L"),
    "GIF of four thousand million pixels": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
    "BMP of two huge sides": b"BM"
    + bytes(12)
    + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 8, 0, 0, 0, 0, 0, 0),
    "PGM of a million by a million pixels": b"P5 1000000 1000000 255 ",
    "PGM of a number without an end": b"P5 " + 1_000_000 * b"9",
    "PPM in plain words": b"P3 9999 6000 255 " + 1000 * b"1 ",
    "PGM of a terabyte": sparse(TERABYTE, b"P5 8 8 255 "),
}


def tensors(header: object, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(*offsets: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def torch_file(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"weight": [1.0]}, file)


TENSORS = {
    "a header that never ends": b"\xff" * 8 + b"{}",
    "a header of 99 megabytes": sparse(100_000_008, (99_000_000).to_bytes(8, "little") + b'{"'),
    "a header of spaces": lambda path: path.write_bytes(tensors((MAX_HEADER_BYTES + 1) * b" ")),
    "tensors that overlap": tensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "a hole": tensors({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24)),
    "a tensor after the end": tensors({"a": entry(0, TERABYTE, shape=(TERABYTE // 4,))}, bytes(8)),
    "a tensor that ends before it begins": tensors({"a": entry(8, 0)}, bytes(8)),
    "more numbers than bytes": tensors({"a": entry(0, 8, shape=(2**31, 2**31, 2**31))}, bytes(8)),
    "an unknown type": tensors({"a": entry(0, 8, dtype="PICKLE")}, bytes(8)),
    "deep nesting": tensors(b'{"a":' + 100_000 * b"[" + 100_000 * b"]" + b"}"),
    "numbers without an end": tensors(b'{"a":' + 100_000 * b"9" + b"}"),
    "too many tensors": tensors({f"{n}": entry(0, 0, shape=(0,)) for n in range(MAX_TENSORS + 1)}),
    "a pickle": torch_file,
    "nothing": b"",
}
CHECKPOINT = TENSORS | {
    "no digest": edited_seed(
        "safetensors", lambda parts: parts.remove(next(p for p in parts if p.startswith(b"digest")))
    ),
    "a network of terabytes": with_json(
        "header", lambda header: assign(header, "member", "model", "layers", 0, "filters", to=2**31 - 1), seed=2
    ),
    "a wide network of terabytes": with_json(
        "header", lambda header: assign(header, "member", "model", "widths", to=[2**31 - 1] * 9)
    ),
    "an endlessly deep network": with_json(
        "header", lambda header: assign(header, "member", "model", "depth", to=2**31 - 1)
    ),
    "a hundred thousand layers": with_json(
        "header",
        lambda header: assign(header, "member", "model", "layers", to=[{"type": "flatten"}] * 100_000),
        seed=2,
    ),
    "images of terabytes": with_json("header", lambda header: assign(header, "input_shape", to=[1, 2**20, 2**20])),
    "a name that is a path to another folder": with_json(
        "header", lambda header: assign(header, "member", "name", to="../../x")
    ),
    "deep nesting in its text": edited_seed("safetensors", lambda parts: with_text(parts, "header", 100_000 * "[")),
}


def pack(change: Callable[[dict], object]) -> Make:
    return with_json("pack", change, reader="pack")


def pack_path(path: str) -> Make:
    return pack(lambda said: assign(said, "ensemble", "members", 0, "path", to=path))


def pack_file(name: str) -> Make:
    return with_json("", lambda table: table.update({f"file.0.{name}": table.pop("file.0.history.jsonl")}), "pack")


PACK = {name: content for name, content in TENSORS.items() if name != "too many tensors"} | {
    "a member above the folder": pack_path("../pooled"),
    "a member at NUL": pack_path("\0"),
    "a member called NUL": pack(lambda said: assign(said, "ensemble", "members", 0, "name", to="\0")),
    "a member at an absolute path": pack_path("/tmp/pooled"),
    "a member on a drive": pack_path("C:\\pooled"),
    "a member too deep": pack_path("a/b/c"),
    "a hidden member": pack_path(".ssh"),
    "a member at the current folder": pack_path("."),
    "a member with an odd name": pack_path("a\nb"),
    "two members in one folder": pack_path("Spelled"),
    "a member at the path of the ensemble file": pack_path("ensemble.toml"),
    "a file that no pack has": pack_file(".bashrc"),
    "a file above the folder": pack_file("../../x"),
    "more members than headers": pack(lambda said: said["headers"].pop()),
    "members without an end": pack(lambda said: assign(said, "headers", to=[{}] * 100_000)),
    "an infinite sum of weights": pack(lambda said: assign(said, "ensemble", "members", 0, "weight", to=1e308)),
}
PREDICTIONS = TENSORS | {
    "text without an end": lambda path: path.write_bytes(
        tensors(b'{"__metadata__":{' + b",".join(b'"%d":""' % number for number in range(2_000_000)) + b"}}")
    ),
    "a class that is a number": with_json("classes", lambda names: names.append(7), "predictions"),
    "deeply nested classes": edited_seed("predictions", lambda parts: with_text(parts, "classes", 100_000 * "[")),
    "labels of another dtype": with_json("", lambda table: assign(table, "labels", "dtype", to="F64"), "predictions"),
    "labels beyond the classes": edited_seed(
        "predictions", lambda parts: assign(parts, -1, to=b"\x7f" * len(parts[-1]))
    ),
}
RECIPE = {
    "a key of a hundred thousand parts": b".".join(100_000 * [b"a"]) + b" = 1",
    "a table of a hundred thousand parts": b"[" + b" . ".join(100_000 * [b'"a b"']) + b"]",
    "keys of many parts": b"\n".join(b".".join([b"a"] * 500) + b".b%d = 1" % n for n in range(500)),
    "deep nesting": b"a = " + 100_000 * b"[" + 100_000 * b"]",
    "tables in tables": b"a = " + 100 * b"{a = " + b"1" + 100 * b"}",
    "a number without an end": b"a = " + 900_000 * b"1",
    "a hexadecimal number without an end": b"a = 0x" + 900_000 * b"f",
    "quotes without an end": 500_000 * b'"\\',
    "a text of megabytes": b"#" * (2 << 20),
    "not UTF-8": b"name = '\xff'",
    "a hundred thousand members": b"[[members]]\n" * 80_000,
    "a hundred thousand problems": b"".join(b"k%d=1\n" % n for n in range(80_000)),
    "unknown layers": b"[model]\nfamily='sequential'\nlayers=[" + 40_000 * b"{type='x'}," + b"]",
    "layers inside layers": b"[model]\nfamily='sequential'\nlayers=["
    + b"{type='residual',body=[" * 25
    + b"]}" * 25
    + b"]",
    "many layers inside layers": b"[model]\nfamily='sequential'\nlayers=["
    + 300 * (b"{type='residual',body=[" + 90 * b"{type='flatten'}," + b"]},")
    + b"]",
    "too many copies": fuzz.FAMILIES.replace("name =", "copies = 1000\nname =").encode(),
    "an endlessly deep network": fuzz.FAMILIES.replace("depth = 1", "depth = 2000000000").encode(),
    "a search with too many values": fuzz.FAMILIES.encode()
    + b"[search.space]\n'optimizer.lr' = {choice = ["
    + b",".join(b"%de-6" % n for n in range(1, 50_000))
    + b"]}",
    "a search between infinite numbers": fuzz.FAMILIES.encode()
    + b"[search.space]\n'optimizer.lr' = {low = 1%s, high = 1%s}" % (400 * b"0", 401 * b"0"),
    "a name that is a path": b"name = '../../x'\n" + fuzz.FAMILIES.encode(),
    "a name that is a path on Windows": b"name = '..\\..\\x'\n" + fuzz.FAMILIES.encode(),
    "terminal escape sequences": b'"\\u001b]0;x\\u0007" = 1\n',
}
ENSEMBLE_TEXT = fuzz.ENSEMBLE.encode()
ENSEMBLE = {
    name: content
    for name, content in RECIPE.items()
    if name.startswith(("a key", "deep nesting", "a number", "not UTF-8"))
} | {
    "a member at NUL": ENSEMBLE_TEXT.replace(b'"run/k3"', b'"run/\\u0000"'),
    "a member called NUL": ENSEMBLE_TEXT.replace(b'"k3"', b'"\\u0000"', 1),
    "a member above": ENSEMBLE_TEXT.replace(b"run/k3", b"../k3"),
    "a member above, later": ENSEMBLE_TEXT.replace(b"run/k3", b"run/../../k3"),
    "a member at an absolute path": ENSEMBLE_TEXT.replace(b"run/k3", b"/run/k3"),
    "a text of megabytes": sparse(TERABYTE),
    "comments of megabytes": lambda path: path.write_bytes(b"#\n" * (9 << 20)),
    "an infinite sum of weights": ENSEMBLE_TEXT.replace(b"0.25", b"1e308"),
    "a weight of NaN": ENSEMBLE_TEXT.replace(b"0.25", b"nan"),
    "an infinite coefficient": ENSEMBLE_TEXT.replace(b"-0.2", b"-inf"),
    "fewer coefficients than classes": ENSEMBLE_TEXT.replace(b"[0.1, -0.2, 3.0, 4.0], ", b""),
    "a member twice": ENSEMBLE_TEXT.replace(b"k5", b"k3"),
    "twenty thousand members with one name": ENSEMBLE_TEXT.split(b"[[members]]")[0]
    + b"".join(b'[[members]]\nname = "k"\npath = "%d"\n' % n for n in range(20_000)),
}
CSV = {
    "a terabyte": sparse(TERABYTE, b"a,b\n"),
    "lines without an end": lambda path: path.write_bytes(b"0,1\n" * (17 << 20)),
    "a field without an end": b'a,b\n"' + 1_000_000 * b"1",
    "columns without names": 1_000_000 * b",",
    "a column twice": b"a," * 1000 + b"a\n",
    "rows that are too long": b"a,b\n" + 1_000_000 * b"0," + b"1\n",
    "infinity": b"a,b\ninf,0\n",
    "NaN": b"a,b\nnan,1\n",
    "a number beyond float64": b"a,b\n1e999,0\n",
    "NUL": b"a,b\n0\0,1\n",
    "not UTF-8": b"a,b\n\xff,1\n",
    "a program": b"a,b\n=cmd|' /C calc'!A0,1\n",
    "terminal escape sequences": b"a,b\n\x1b]0;x\x07,1\n",
}
LABELS = {
    "a terabyte": sparse(TERABYTE),
    "not UTF-8": b"\xff\xfe\0",
    "more lines than the limit": lambda path: path.write_bytes(b"0\n" * (17 << 20)),
}
EPOCH = fuzz.history_seeds(Path())[0].splitlines()[0]
HISTORY = {
    "deep nesting": 100_000 * b"[",
    "a number without an end": EPOCH.replace(b"900.0", 100_000 * b"9"),
    "a string for a number": fuzz.history_from([EPOCH.replace(b"0.5", b'"much"')]),
    "a list for a number": fuzz.history_from([EPOCH.replace(b"0.5", b"[0.5]")]),
    "a list for an epoch": b"[1]",
    "an empty epoch": fuzz.history_from([b"{}"]),
    "an epoch without a digest": b"{}",
    "empty lines": b"\n" * 1_000_000,
    "not UTF-8": b"\xff",
    "a terabyte": sparse(TERABYTE, EPOCH + b"\n"),
}


@dataclass(frozen=True)
class HostileFiles:
    """Hostile files for one reader.

    Args:
        name: File name.
        read: Reads the file.
        error: Error that it must raise.
        files: Content of each file, or a function that writes it.
        not_files: Functions that make something else at the path.
    """

    name: str
    read: Callable[[Path], object]
    error: type[FmcliError]
    files: dict[str, bytes | Make]
    not_files: dict[str, Make] = field(default_factory=lambda: NOT_FILES)

    @property
    def all(self) -> dict[str, bytes | Make]:
        return {**self.not_files, **self.files}


def read_idx_folder(path: Path) -> None:
    """Read the folder of a file; its other files are valid."""
    load_source(DataSpec(source=f"idx:{path.parent}"))


def read_image_file(path: Path) -> None:
    for image in fuzz.image_reader().read([str(path)]):
        if image.error:
            raise DataError(image.error)


def read_array(path: Path) -> None:
    """Read an array as predictions, labels and images; raise only if all three are refused."""
    refused = []
    for read in (read_external, read_labels, read_image_file):
        try:
            read(path)
        except DataError as error:
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]


HOSTILE_FILES = {
    "npz": HostileFiles("a.npz", lambda path: load_source(DataSpec(source=f"npz:{path}")), DataError, NPZ),
    "idx": HostileFiles("train-images-idx3-ubyte", read_idx_folder, DataError, IDX),
    "gzip": HostileFiles("train-images-idx3-ubyte.gz", read_idx_folder, DataError, GZIP),
    "npy": HostileFiles("a.npy", read_array, DataError, NPY),
    "png": HostileFiles("a.png", read_image_file, DataError, PNG),
    "jpeg": HostileFiles("a.jpg", read_image_file, DataError, JPEG),
    "images": HostileFiles("a.tif", read_image_file, DataError, IMAGES),
    "safetensors": HostileFiles(
        "model.safetensors", lambda path: load_checkpoint(path, device=CPU), CheckpointError, CHECKPOINT
    ),
    "pack": HostileFiles(
        "a.safetensors",
        lambda path: (unpack(path, path.with_name("out")), read_pack(path, device=CPU)),
        CheckpointError,
        PACK,
    ),
    "predictions": HostileFiles("test.safetensors", load_predictions, CheckpointError, PREDICTIONS),
    "recipe": HostileFiles("a.toml", lambda path: load_recipe(str(path)), RecipeError, RECIPE),
    "ensemble": HostileFiles("a.toml", read_ensemble_file, CheckpointError, ENSEMBLE),
    "csv": HostileFiles("a.csv", read_external, DataError, CSV),
    "labels": HostileFiles(
        "labels.txt",
        read_labels,
        DataError,
        LABELS,
        not_files={name: make for name, make in NOT_FILES.items() if make is not os.mkfifo},  # reads as an empty text
    ),
    "history": HostileFiles(
        "history.jsonl",
        lambda path: read_history(path.parent),
        CheckpointError,
        HISTORY,
    ),
}
CASES = [(reader, name) for reader, hostile in HOSTILE_FILES.items() for name in hostile.all]


def test_each_reader_has_at_least_ten_hostile_files():
    assert {*fuzz.READERS} <= {*HOSTILE_FILES}
    assert all(len(HOSTILE_FILES[reader].all) >= 10 for reader in fuzz.READERS)


@pytest.fixture(scope="module", autouse=True)
def _ready(tmp_path_factory):
    """Import the libraries that readers import on first use, so that they do not count."""
    for reader in ("png", "safetensors", "predictions", "pack", "recipe"):
        folder = tmp_path_factory.mktemp(reader)
        seed = fuzz.READERS[reader].seeds(tmp_path_factory.mktemp("seeds"))[0]
        fuzz.READERS[reader].read(seed, folder)


@needs_fork
@pytest.mark.parametrize(("reader", "name"), CASES, ids=[f"{reader}: {name}" for reader, name in CASES])
def test_a_hostile_file_is_refused_with_little_work_and_memory(reader, name, tmp_path):
    hostile = HOSTILE_FILES[reader]
    if reader in ("idx", "gzip"):
        write_idx_folder(tmp_path, *draw_quadrants(4, size=6))
    path = tmp_path / hostile.name
    content = hostile.all[name]
    if name in hostile.not_files or reader == "gzip":  # it replaces the valid file
        path.with_name(path.name.removesuffix(".gz")).unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    before = {entry.name for entry in tmp_path.iterdir()}
    outcome = measure(lambda: hostile.read(path))
    assert hostile.error.__name__ in outcome.bases, outcome
    assert outcome.work <= MAX_WORK
    assert outcome.memory <= MAX_MEMORY_BYTES
    assert printable(outcome.message.replace("\n", "")) == outcome.message.replace("\n", "")
    assert {entry.name for entry in tmp_path.iterdir()} == before


@needs_fork
@pytest.mark.slow
def test_the_largest_image_is_in_memory_at_most_twice(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 8000, 8000, 8, 4, 0, 0, 0)  # grey and alpha
    (tmp_path / "a.png").write_bytes(chunks(header, b"IDAT" + bytes(16_001 * 8000), b"IEND"))
    outcome = measure(lambda: read_image_file(tmp_path / "a.png"))
    assert outcome.kind == "answer", outcome
    assert outcome.memory <= 400 << 20


def test_the_limits_are_documented():
    documented = (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8")
    counts = (MAX_CLASSES, MAX_IMAGE_VALUES, MAX_IMAGE_PIXELS, MAX_TENSORS, MAX_MEMBERS, MAX_LAYERS, MAX_TRIED_VALUES)
    sizes = (
        MAX_ARRAY_BYTES,
        MAX_IN_MEMORY_BYTES,
        MAX_IMAGE_FILE_BYTES,
        MAX_HEADER_BYTES,
        MAX_TABLE_BYTES,
        MAX_LABELS_BYTES,
        MAX_CLASSES_FILE_BYTES,
        MAX_RECIPE_BYTES,
    )
    for count in (*counts, MAX_JPEG_SCANS, MAX_COMPRESSION_RATIO, MAX_NESTING, MAX_DOTS_PER_LINE, MAX_LINE_CHARACTERS):
        assert re.search(rf"\b{count:,}\b", documented), count
    for size in (*sizes, MAX_ENSEMBLE_BYTES, MAX_HISTORY_BYTES, MAX_PATH_BYTES):
        power = min((size.bit_length() - 1) // 10, 3)
        assert f" {size >> 10 * power} {('', 'K', 'M', 'G')[power]}iB" in documented, size


# --- mutations --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return {name: reader.seeds(tmp_path_factory.mktemp(name)) for name, reader in fuzz.READERS.items()}


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8)), min_size=1, max_size=3)


@pytest.mark.parametrize("reader", fuzz.READERS)
@given(number=st.integers(0, 99), seed=st.integers(0, 2**32), edits=EDITS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutated_file_gives_an_answer_or_an_fmcli_error(reader, number, seed, edits, seeds, tmp_path_factory):
    def edited(content):
        for where, length, instead in edits:
            start = round(where * len(content))
            content = content[:start] + instead + content[start + length :]
        return content

    tools, folder = fuzz.READERS[reader], tmp_path_factory.mktemp("mutated")
    valid = seeds[reader][number % len(seeds[reader])]
    content = fuzz.mutated(tools, valid, random.Random(seed), edited)
    tools.read(content, folder)


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_seeds_are_valid_and_survive_taking_apart_and_putting_together(reader, seeds, tmp_path):
    tools = fuzz.READERS[reader]
    for number, content in enumerate(seeds[reader]):
        for kind, same in (("seed", content), ("again", tools.put_together(tools.take_apart(content)))):
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            fuzz.OUTCOMES.clear()
            tools.read(same, folder)
            assert any(fuzz.OUTCOMES)


@pytest.mark.slow
@pytest.mark.parametrize("reader", fuzz.READERS)
def test_the_fuzzer_finds_nothing(reader):
    pytest.importorskip("atheris")
    result = fuzz.try_reader(reader, 300)
    assert (result["problems"], result["inputs"]) == ({}, 300)
    assert result["answered"] > 0


@pytest.mark.slow
def test_the_fuzzer_is_reproducible():
    pytest.importorskip("atheris")
    first, same, other = (fuzz.try_reader("history", 300, seed) for seed in (1, 1, 2))
    assert first["crc32"] == same["crc32"] != other["crc32"]


# --- reading ----------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab.\"'\\\n\t#=[]{}, é_-0"), max_size=60)
TABLES = st.dictionaries(
    TEXTS,
    st.recursive(
        st.integers() | st.floats(allow_nan=False) | st.booleans() | TEXTS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=6,
)
DOTTED = {"dots": 100 * ".", "a." * 40: 60 * "x.", "quotes": "\"\"\"'''" * 50, "word": 2000 * "w"}


@given(table=TABLES, multiline=st.booleans())
@example(table=DOTTED, multiline=True)
@example(table=DOTTED, multiline=False)
@settings(max_examples=100)
def test_toml_is_read_as_it_was_written(table, multiline):
    text = tomli_w.dumps(table, multiline_strings=multiline)
    assert parse_toml(text) == tomllib.loads(text)


def test_toml_lines_have_limits():
    dots = MAX_DOTS_PER_LINE * "."
    assert parse_toml(f"a='{dots}'")
    for text in (f"b=1\na='{dots}.'", "b=1\n" + (MAX_DOTS_PER_LINE + 2) * "a." + "a=1"):
        with pytest.raises(ValueError, match="line 2 has more than 100000 characters or 100 dots"):
            parse_toml(text)
    comment = MAX_LINE_CHARACTERS * "#"
    assert parse_toml(comment) == {}
    with pytest.raises(ValueError, match="line 1 has more than"):
        parse_toml(f"{comment}#")


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ("{a=", "}")])
def test_toml_nesting_has_a_limit(start, end):
    inner = "1" if start != "[" else ""
    assert parse_toml("a=" + (MAX_NESTING - 1) * start + inner + (MAX_NESTING - 1) * end)
    for depth in (MAX_NESTING, 5000):
        with pytest.raises(ValueError, match="nest deeper than 64 levels"):
            parse_toml("a=" + depth * start + inner + depth * end)


def test_reading_has_a_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert read_bytes(tmp_path / "a", 3) == b"123"
    with pytest.raises(DataError, match="a is larger than 2 bytes"):
        read_bytes(tmp_path / "a", 2, DataError)
    with pytest.raises(FmcliError, match="null"):
        read_bytes(tmp_path / "\0", 2)


def written_late(content: bytes) -> Path:
    """Return a pipe with a slow writer, as the shell makes it for <(…)."""
    end, other = os.pipe()

    def write() -> None:
        for start in range(0, len(content), 1000):
            time.sleep(0.02)
            os.write(other, content[start : start + 1000])
        os.close(other)

    threading.Thread(target=write).start()
    return Path(f"/dev/fd/{end}")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no names")
def test_a_pipe_of_process_substitution_is_read_to_its_end(cli):
    text = Path(fuzz.RECIPES / "quick.toml").read_bytes()
    assert read_text(written_late(text), 1 << 20, DataError) == text.decode()
    assert load_recipe(str(written_late(text))).members
    assert cli("recipe", "validate", written_late(text)).status == 0
    assert read_labels(written_late(b"coat\nbag\n")) == ("coat", "bag")


# --- commands ---------------------------------------------------------------------------------------------

ESCAPES = ("\x1b]0;x\x07\x9b31m", "a\nb\u202e")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a member."""
    return fuzz.tiny_checkpoints(tmp_path_factory.mktemp("member"))[0].parent


@pytest.fixture(scope="module")
def checkpoint_with_escapes(tmp_path_factory):
    """Member whose class names contain terminal escape sequences."""
    path = tmp_path_factory.mktemp("escapes") / "model.safetensors"
    with_json("header", lambda header: assign(header, "class_names", to=ESCAPES))(path)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, link("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predict", "PATH", "x.png"], "m.safetensors"),
        (["predict", "MODEL", "PATH"], "x.png"),
        (["predict", "MODEL", "PATH"], "x.npy"),
        (["predict", "MODEL", "PATH"], "x-ubyte.gz"),
        (["evaluate", "PATH"], "run"),
        (["ensemble", "evaluate", "PATH"], "e.toml"),
        (["ensemble", "evaluate", "PATH"], "p.csv"),
        (["ensemble", "evaluate", "PATH"], "p.npy"),
        (["ensemble", "evaluate", "PATH"], "p.safetensors"),
        (["ensemble", "unpack", "PATH", "--output", "out"], "p.safetensors"),
        (["data", "info", "PATH"], "e.toml"),
        (["recipe", "validate", "PATH"], "r.toml"),
        (["train", "--recipe", "PATH", "--output", "out"], "r.toml"),
        (["plot", "curves", "PATH", "--output", "out.png"], "history.jsonl"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_no_command_waits_for_a_pipe_or_reads_a_device_to_its_end(
    words, name, make, checkpoint, cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    result = cli(*({"PATH": name, "MODEL": checkpoint}.get(word, word) for word in words))
    assert result.status in (2, 3, 4)
    assert "error" in result.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


NAMES = ["a b.png", "a\nb.png", "\x1b]0;x\x07.png", "\x9b31m.png", "\udcff.png", "a\u202eb.png"]


@pytest.fixture
def oddly_named_images(tmp_path, monkeypatch):
    """Image files in the current folder whose names contain escape sequences, and one that does not exist."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Image.new("L", (6, 6)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
    return [*NAMES, "missing\x1b[2J.png"]


class Tty(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("format_", ["table", "json", "jsonl", "csv"])
def test_names_cannot_send_escape_sequences_to_a_terminal(
    format_, checkpoint_with_escapes, oddly_named_images, monkeypatch
):
    streams = [Tty(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    options = ["--format", format_, "--top", "2", "--verbose"]
    assert run(["predict", str(checkpoint_with_escapes), *oddly_named_images, *options]) == 3
    shown = "".join(stream.buffer.getvalue().decode() for stream in streams)
    shown = re.sub(r"\x1b\[[\d;]*m|\n", "", shown)  # fmcli's own colours
    assert printable(shown) == shown
    assert re.search(r"\\(x|u00)1b\]0;x\\(x|u00)07", shown)


def test_names_are_unchanged_in_a_pipe(checkpoint_with_escapes, oddly_named_images, cli):
    for format_, read in (("csv", lambda result: result.rows), ("jsonl", lambda result: result.records)):
        records = read(cli("predict", checkpoint_with_escapes, *NAMES[:4], "--format", format_))
        assert [record["input"] for record in records] == NAMES[:4]
        assert {record["label"] for record in records} <= {*ESCAPES}


def test_a_path_on_standard_input_has_a_limit(checkpoint, cli, monkeypatch):
    with Path("/dev/zero").open(encoding="latin-1") as zero:
        monkeypatch.setattr(sys, "stdin", zero)
        refused = cli("predict", checkpoint, "-", "--format", "jsonl")
    assert refused.status == 2
    assert "longer than 65536 bytes" in refused.err
