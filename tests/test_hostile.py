"""Files that lie, burst or never end: refused soon and in little memory, and printed harmlessly; `fuzz.py` mutates."""

import gzip
import io
import json
import os
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import tomllib
import traceback
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
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
from fmcli.cli.predict import LONGEST_PATH
from fmcli.data import load_source
from fmcli.data.idx import MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO, MAX_IN_MEMORY_BYTES
from fmcli.data.image_files import MAX_IMAGE_FILE_BYTES, MAX_IMAGE_PIXELS, MAX_JPEG_SCANS
from fmcli.data.image_set import MAX_IMAGE_VALUES
from fmcli.data.sources import MAX_CLASSES_FILE_BYTES
from fmcli.ensemble.external import MAX_LABELS_BYTES, MAX_TABLE_BYTES, read_external, read_labels
from fmcli.ensemble.file import MAX_FILE_BYTES as MAX_ENSEMBLE_BYTES
from fmcli.ensemble.file import read_ensemble_file
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import CheckpointError, DataError, FmcliError, RecipeError, printable
from fmcli.recipe import DataSpec, load_recipe
from fmcli.recipe.families import MAX_LAYERS
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
SECONDS = 1.0
MEMORY = 200 << 20
TERABYTE = 1 << 40
Make = Callable[[Path], object]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@dataclass(frozen=True)
class CheckpointWriter:
    """What came of reading a file, in another process.

    Args:
        kind: The error's name, or `answer`.
        family: The names of the error's classes.
        said: Its message.
        seconds: Of computing.
        memory: By how many bytes it grew.
    """

    kind: str
    family: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0
    memory: int = 0


def measure(read: Callable[[], object]) -> CheckpointWriter:
    """Read in a process of its own, which is killed if it waits."""
    answer, say = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        before, started = fuzz.peak_memory(), time.process_time()
        kind, family, said = "answer", [], ""
        try:
            read()
        except BaseException as error:
            kind, family = type(error).__name__, [one.__name__ for one in type(error).__mro__]
            said = str(error) if isinstance(error, FmcliError) else traceback.format_exc()
        seconds, memory = time.process_time() - started, fuzz.peak_memory() - before
        os.write(say, json.dumps([kind, family, said[:20_000], seconds, memory]).encode())
        os._exit(0)
    os.close(say)
    with os.fdopen(answer, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return CheckpointWriter(*json.loads(said)) if said else CheckpointWriter("killed")


# --- lies -------------------------------------------------------------------------------------------------


def sparse(size: int, start: bytes = b"") -> Make:
    """A file of a size that takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


ODD = {
    "a pipe that nobody writes to": os.mkfifo,
    "a device that never ends": link("/dev/zero"),
    "a circle of links": lambda path: path.symlink_to(path.name),
    "a folder": Path.mkdir,
}


def of_seed(reader: str, change: Callable[[fuzz.Parts], object], seed: int = 0) -> Make:
    """A valid input with its parts changed, whole by its lengths, checksums and digests."""

    def make(path: Path) -> None:
        folder = path.parent / "seeds"
        folder.mkdir()
        tools = fuzz.READERS[reader]
        parts = tools.take_apart(tools.seeds(folder)[seed])
        change(parts)
        path.write_bytes(tools.put_together(parts))

    return make


def with_json(name: str, change: Callable[[dict], object], reader: str = "safetensors", seed: int = 0) -> Make:
    """A tensors' file with a change in the JSON of a text, by its name; without a name, in that of its tensors."""

    def change_parts(parts: fuzz.Parts) -> None:
        start = f"{name}\0".encode() if name else b"{"
        place = next(place for place, part in enumerate(parts) if part.startswith(start))
        value = json.loads(parts[place].split(b"\0")[-1])
        change(value)
        parts[place] = (start if name else b"") + json.dumps(value).encode()

    return of_seed(reader, change_parts, seed)


def with_text(parts: fuzz.Parts, name: str, text: str) -> None:
    """Replace a text of a tensors' file."""
    place = next(place for place, part in enumerate(parts) if part.startswith(f"{name}\0".encode()))
    parts[place] = f"{name}\0{text}".encode()


def changed(table: object, *path: object, to: object) -> None:
    """Set what a path leads to."""
    for step in path[:-1]:
        table = table[step]
    table[path[-1]] = to


def idx(shape: tuple[int, ...], content: bytes = b"", code: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + content


def labels_too(content: bytes) -> Make:
    """Labels that lie, beside images that do not."""
    return lambda path: path.with_name("train-labels-idx1-ubyte").write_bytes(content)


def names_too(make: Make) -> Make:
    return lambda path: make(path.with_name("classes.txt"))


IDX = {
    "terabytes in twelve bytes": idx((1 << 20, 1 << 10, 1 << 10)),
    "gigabytes in twelve bytes": idx((7 << 10, 1 << 10, 1 << 10)),
    "a side of nothing beside two of everything": idx((0, 2**32 - 1, 2**32 - 1)),
    "nothing at the end": idx((2**32 - 1, 2**32 - 1, 2**32 - 1, 0)),
    "more than the limit, and all there": sparse(9 << 30, idx((9 << 10, 1 << 10, 1 << 10))),
    "less than is there": sparse(TERABYTE, idx((4, 6, 6))),
    "255 sides": b"\0\0\x08\xff" + 1020 * b"\xff",
    "doubles": idx((1, 1, 1), 8 * b"\xff", code=0x0E),
    "two thousand million classes": labels_too(idx((4,), struct.pack(">4i", 0, 1, 2, 2**31 - 1), code=0x0C)),
    "negative labels": labels_too(idx((4,), struct.pack(">4i", 0, 1, 2, -1), code=0x0C)),
    "labels of terabytes": labels_too(idx((2**32 - 1, 2**10, 2**8))),
    "images of one huge side": idx((4, 1, 1 << 23), bytes(4 << 23)),
    "names that never end": names_too(sparse(TERABYTE)),
    "names that are not text": names_too(lambda path: path.write_bytes(b"\xff\xfe")),
}
ZEROS = gzip.compress(bytes(64 << 20), mtime=0)  # a member of many
GZIP = {
    "two gigabytes of nothing": gzip.compress(idx((2 << 11, 1 << 10, 1 << 9))) + 32 * ZEROS,
    "more than it promises": gzip.compress(idx((4, 6, 6))) + 32 * ZEROS,
    "terabytes": gzip.compress(idx((1 << 20, 1 << 10, 1 << 10))),
    "gigabytes": gzip.compress(idx((7 << 10, 1 << 10, 1 << 10), b"x")),
    "within itself": gzip.compress(gzip.compress(idx((4, 6, 6), bytes(144)))),
    "cut short": gzip.compress(idx((4, 6, 6), os.urandom(144)))[:-20],
    "other content than its checksum": gzip.compress(idx((4, 6, 6), bytes(144)))[:-8] + bytes(8),
    "something behind": gzip.compress(idx((4, 6, 6), bytes(144))) + b"PK\3\4",
    "a name that never ends": b"\x1f\x8b\x08\x08" + bytes(6) + (1 << 20) * b"a",
    "an unknown method": b"\x1f\x8b\x09\0" + bytes(100),
    "an empty member after the other": gzip.compress(b"", mtime=0) * 1000,
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
    "more than can be counted": npy(npy_of("(4611686018427387904, 4)", "'<f4'"), bytes(64)),
    "less than nothing": npy(npy_of("(-1, 4)", "'<f4'"), bytes(64)),
    "a header of four gigabytes": sparse(5 << 30, b"\x93NUMPY\x02\0\xff\xff\xff\xff{"),
    "a header of four gigabytes, and another": sparse(5 << 30, b"\x93NUMPY\x03\0\xff\xff\xff\xff{"),
    "Python objects": pickled,
    "an archive": zipped,
    "a nest": npy(npy_of("(" * 5000)),
    "signs": npy(npy_of("-" * 9000 + "1")),
    "a program": npy(npy_of("__import__('os').abort()")),
    "items of gigabytes": npy(npy_of("(3,)", "'|V2147483647'"), bytes(64)),
    "records": npy(npy_of("(3,)", "[('a', '<f4'), ('b', '<i8')]"), bytes(64)),
    "a terabyte of labels, and all there": sparse(TERABYTE + 128, npy(npy_of(f"({TERABYTE},)").ljust(117) + "\n")),
    "an image of a terabyte, and all there": sparse(
        TERABYTE + 128, npy(npy_of("(1048576, 1048576)").ljust(117) + "\n")
    ),
    "a terabyte of probabilities": sparse(TERABYTE + 128, npy(npy_of("(137438953472, 2)", "'<f4'").ljust(117) + "\n")),
}
IMAGES_OF_NPZ = npy(npy_of("(4, 6, 6)"), bytes(144))
LABELS_OF_NPZ = npy(npy_of("(4,)"), bytes(range(4)))


def npz(method: int = zipfile.ZIP_DEFLATED, **changes: bytes) -> bytes:
    """Four images of 6 by 6 to train on and to test, and their labels, but for what is changed."""
    arrays = {"x_train": IMAGES_OF_NPZ, "y_train": LABELS_OF_NPZ, "x_test": IMAGES_OF_NPZ, "y_test": LABELS_OF_NPZ}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in {**arrays, **changes}.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def swollen(path: Path) -> None:
    """Much that packs to little."""
    path.write_bytes(npz(x_train=npy(npy_of("(262144, 32, 32)"), bytes(256 << 20))))


NPZ = {
    "gigabytes of nothing": swollen,
    "terabytes in a header": npz(x_train=npy(npy_of("(1048576, 1024, 1024)"), b"x")),
    "gigabytes in the words of the archive": npz(x_train=IMAGES_OF_NPZ + b"x").replace(
        struct.pack("<I", len(IMAGES_OF_NPZ) + 1), struct.pack("<I", 4_000_000_000)
    ),
    "more than it promises": npz(x_train=IMAGES_OF_NPZ + bytes(16 << 20)),
    "a pickle": npz(y_train=npy(npy_of("(4,)", "'|O'"), pickle.dumps([0, 1, 2, 3]))),
    "records": npz(y_train=npy(npy_of("(4,)", "[('a', [('b', '<i8')])]"), bytes(32))),
    "a header that never ends": npz(x_train=b"\x93NUMPY\2\0\xff\xff\xff\x7f{"),
    "a nest": npz(x_train=npy(npy_of("(" * 5000))),
    "numbers of nothing": npz(x_train=npy(npy_of("(4, 6, 6)", "'|V0'"))),
    "less than nothing": npz(x_train=npy(npy_of("(-4, -6, 6)"), bytes(144))),
    "packed by a window of gigabytes": npz(zipfile.ZIP_LZMA),
    "very many files": lambda path: path.write_bytes(npz(**{f"{number}": b"" for number in range(30_000)})),
    "cut short": npz()[:-30],
    "two thousand million classes": npz(y_train=npy(npy_of("(4,)", "'<i4'"), struct.pack("<4i", 0, 1, 2, 2**31 - 1))),
    "something before and behind": b"PK\5\6" + npz() + b"PK\5\6",
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
    "fewer rows than promised": png(8, 8, rows=bytes(20)),
    "64 megapixels of nothing": png(8000, 8000, rows=b""),
    "text that bursts": png(8, 8, b"zTXta\0\0" + zlib.compress(bytes(100 << 20))),
    "texts that burst together": png(8, 8, *100 * [b"zTXta\0\0" + zlib.compress(bytes(1 << 20))]),
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
    """A progressive image of 64 megapixels whose last scan is there again and again."""
    content = jpeg(8000, 8000, progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


JPEG = {
    "four thousand million pixels": jpeg(65_500, 65_500),
    "no pixels": jpeg(0, 0),
    "a scan again and again": scans(10_000),
    "a scan again and again, behind a lie": scans(0)[:-2] + b"\xff\xfe\x00\x04\xff\xd9" + scans(100)[2:],
    "nothing but a beginning": b"\xff\xd8\xff",
    "no tables": b"\xff\xd8" + jpeg()[jpeg().index(b"\xff\xc0") :],
    "a part that is longer than the file": b"\xff\xd8\xff\xe1\xff\xffExif\0\0",
    "an end at once": b"\xff\xd8\xff\xd9",
    "markers alone": b"\xff\xd8" + 100_000 * b"\xff",
    "a terabyte": sparse(TERABYTE, jpeg()),
    "another program's file": b"\x7fELF" + bytes(1000),
}


def tiff(*entries: tuple[int, int, int, int], after: int = 0) -> bytes:
    """An image of tags: number, type, count and value."""
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
    "BMP of two sides of everything": b"BM"
    + bytes(12)
    + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 8, 0, 0, 0, 0, 0, 0),
    "PGM of a million sides": b"P5 1000000 1000000 255 ",
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
    "a tensor behind the end": tensors({"a": entry(0, TERABYTE, shape=(TERABYTE // 4,))}, bytes(8)),
    "a tensor that ends before it begins": tensors({"a": entry(8, 0)}, bytes(8)),
    "more numbers than bytes": tensors({"a": entry(0, 8, shape=(2**31, 2**31, 2**31))}, bytes(8)),
    "an unknown type": tensors({"a": entry(0, 8, dtype="PICKLE")}, bytes(8)),
    "a nest": tensors(b'{"a":' + 100_000 * b"[" + 100_000 * b"]" + b"}"),
    "numbers without an end": tensors(b'{"a":' + 100_000 * b"9" + b"}"),
    "more tensors than anything has": tensors({f"{n}": entry(0, 0, shape=(0,)) for n in range(MAX_TENSORS + 1)}),
    "a pickle": torch_file,
    "nothing": b"",
}
CHECKPOINT = TENSORS | {
    "no digest": of_seed("safetensors", lambda parts: parts.remove(next(p for p in parts if p.startswith(b"digest")))),
    "a network of terabytes": with_json(
        "header", lambda header: changed(header, "member", "model", "layers", 0, "filters", to=2**31 - 1), seed=1
    ),
    "a network of terabytes, all of it wide": with_json(
        "header", lambda header: changed(header, "member", "model", "widths", to=[2**31 - 1] * 9)
    ),
    "a network that is deep without an end": with_json(
        "header", lambda header: changed(header, "member", "model", "depth", to=2**31 - 1)
    ),
    "a million layers": with_json(
        "header",
        lambda header: changed(header, "member", "model", "layers", to=[{"type": "flatten"}] * 100_000),
        seed=1,
    ),
    "images of terabytes": with_json("header", lambda header: changed(header, "input_shape", to=[1, 2**20, 2**20])),
    "a name that leads elsewhere": with_json("header", lambda header: changed(header, "member", "name", to="../../x")),
    "a nest in its text": of_seed("safetensors", lambda parts: with_text(parts, "header", 100_000 * "[")),
}


def pack(change: Callable[[dict], object]) -> Make:
    return with_json("pack", change, reader="pack")


def pack_path(path: str) -> Make:
    return pack(lambda said: changed(said, "ensemble", "members", 0, "path", to=path))


def pack_file(name: str) -> Make:
    return with_json("", lambda table: table.update({f"file.0.{name}": table.pop("file.0.history.jsonl")}), "pack")


PACK = {name: lie for name, lie in TENSORS.items() if name != "more tensors than anything has"} | {
    "a member above the folder": pack_path("../pooled"),
    "a member at NUL": pack_path("\0"),
    "a member called NUL": pack(lambda said: changed(said, "ensemble", "members", 0, "name", to="\0")),
    "a member at a place of its own": pack_path("/tmp/pooled"),
    "a member on a drive": pack_path("C:\\pooled"),
    "a member too deep": pack_path("a/b/c"),
    "a hidden member": pack_path(".ssh"),
    "a member of nothing": pack_path("."),
    "a member with an odd name": pack_path("a\nb"),
    "members in one folder": pack_path("Spelled"),
    "a member for the rule": pack_path("ensemble.toml"),
    "a file that no pack has": pack_file(".bashrc"),
    "a file above the folder": pack_file("../../x"),
    "more members than networks": pack(lambda said: said["headers"].pop()),
    "members without an end": pack(lambda said: changed(said, "headers", to=[{}] * 100_000)),
    "a rule that bursts": pack(lambda said: changed(said, "ensemble", "members", 0, "weight", to=1e308)),
}
PREDICTIONS = TENSORS | {
    "text without an end": lambda path: path.write_bytes(
        tensors({"__metadata__": {f"{number}": "" for number in range(2_000_000)}})
    ),
    "classes that are none": with_json("classes", lambda names: names.append(7), "predictions"),
    "classes in a nest": of_seed("predictions", lambda parts: with_text(parts, "classes", 100_000 * "[")),
    "labels that are numbers of another kind": with_json(
        "", lambda table: changed(table, "labels", "dtype", to="F64"), "predictions"
    ),
    "labels beyond the classes": of_seed("predictions", lambda parts: changed(parts, -1, to=b"\x7f" * len(parts[-1]))),
}
RECIPE = {
    "a key of a hundred thousand parts": b".".join(100_000 * [b"a"]) + b" = 1",
    "a table of a hundred thousand parts": b"[" + b" . ".join(100_000 * [b'"a b"']) + b"]",
    "keys of many parts": b"\n".join(b".".join([b"a"] * 500) + b".b%d = 1" % n for n in range(500)),
    "a nest": b"a = " + 100_000 * b"[" + 100_000 * b"]",
    "tables in tables": b"a = " + 100 * b"{a = " + b"1" + 100 * b"}",
    "a number without an end": b"a = " + 900_000 * b"1",
    "a hexadecimal number without an end": b"a = 0x" + 900_000 * b"f",
    "quotes without an end": 500_000 * b'"\\',
    "a text of megabytes": b"#" * (2 << 20),
    "no text": b"name = '\xff'",
    "a hundred thousand members": b"[[members]]\n" * 80_000,
    "a hundred thousand problems": b"".join(b"k%d=1\n" % n for n in range(80_000)),
    "layers that are none": b"[model]\nfamily='sequential'\nlayers=[" + 40_000 * b"{type='x'}," + b"]",
    "copies without an end": fuzz.TWO_FAMILIES.replace("name =", "copies = 1000\nname =").encode(),
    "a network that is deep without an end": fuzz.TWO_FAMILIES.replace("depth = 1", "depth = 2000000000").encode(),
    "a search without an end": fuzz.TWO_FAMILIES.encode()
    + b"[search.space]\n'optimizer.lr' = {choice = ["
    + b",".join(b"%de-6" % n for n in range(1, 50_000))
    + b"]}",
    "a search between numbers that are none": fuzz.TWO_FAMILIES.encode()
    + b"[search.space]\n'optimizer.lr' = {low = 1%s, high = 1%s}" % (400 * b"0", 401 * b"0"),
    "a folder elsewhere": b"name = '../../x'\n" + fuzz.TWO_FAMILIES.encode(),
    "a folder elsewhere on Windows": b"name = '..\\..\\x'\n" + fuzz.TWO_FAMILIES.encode(),
    "steps on a terminal": b'"\\u001b]0;x\\u0007" = 1\n',
}
ENSEMBLE_TEXT = fuzz.ENSEMBLE.encode()
ENSEMBLE = {
    name: lie for name, lie in RECIPE.items() if name.startswith(("a key", "a nest", "a number", "no text"))
} | {
    "a member at NUL": ENSEMBLE_TEXT.replace(b'"run/k3"', b'"run/\\u0000"'),
    "a member called NUL": ENSEMBLE_TEXT.replace(b'"k3"', b'"\\u0000"', 1),
    "a member above": ENSEMBLE_TEXT.replace(b"run/k3", b"../k3"),
    "a member above, later": ENSEMBLE_TEXT.replace(b"run/k3", b"run/../../k3"),
    "a member at a place of its own": ENSEMBLE_TEXT.replace(b"run/k3", b"/run/k3"),
    "a text of megabytes": sparse(TERABYTE),
    "comments of megabytes": lambda path: path.write_bytes(b"#\n" * (9 << 20)),
    "weights that burst": ENSEMBLE_TEXT.replace(b"0.25", b"1e308"),
    "weights that are none": ENSEMBLE_TEXT.replace(b"0.25", b"nan"),
    "numbers that burst": ENSEMBLE_TEXT.replace(b"-0.2", b"-inf"),
    "fewer numbers than classes": ENSEMBLE_TEXT.replace(b"[0.1, -0.2, 3.0, 4.0], ", b""),
    "a member twice": ENSEMBLE_TEXT.replace(b"k5", b"k3"),
    "twenty thousand members of one name": ENSEMBLE_TEXT.split(b"[[members]]")[0]
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
    "what is no number": b"a,b\nnan,1\n",
    "a number that bursts": b"a,b\n1e999,0\n",
    "NUL": b"a,b\n0\0,1\n",
    "no text": b"a,b\n\xff,1\n",
    "a program": b"a,b\n=cmd|' /C calc'!A0,1\n",
    "steps on a terminal": b"a,b\n\x1b]0;x\x07,1\n",
}
LABELS = {
    "a terabyte": sparse(TERABYTE),
    "no text": b"\xff\xfe\0",
    "another line": lambda path: path.write_bytes(b"0\n" * (17 << 20)),
}
EPOCH = fuzz.history_seeds(Path())[0].splitlines()[0]
HISTORY = {
    "a nest": 100_000 * b"[",
    "a number without an end": EPOCH.replace(b"900.0", 100_000 * b"9"),
    "a text for a number": fuzz.history_from([EPOCH.replace(b"0.5", b'"much"')]),
    "a list for a number": fuzz.history_from([EPOCH.replace(b"0.5", b"[0.5]")]),
    "a list for an epoch": b"[1]",
    "an epoch of nothing": fuzz.history_from([b"{}"]),
    "an epoch without a digest": b"{}",
    "lines of nothing": b"\n" * 1_000_000,
    "no text": b"\xff",
    "a terabyte": sparse(TERABYTE, EPOCH + b"\n"),
}


@dataclass(frozen=True)
class Liars:
    """Lies to one reader.

    Args:
        name: Of the file that lies.
        read: Reads it.
        error: What it must raise.
        lies: Contents, or what makes a file.
        odd: What is no file.
    """

    name: str
    read: Callable[[Path], object]
    error: type[FmcliError]
    lies: dict[str, bytes | Make]
    odd: dict[str, Make] = field(default_factory=lambda: ODD)

    @property
    def all(self) -> dict[str, bytes | Make]:
        return {**self.odd, **self.lies}


def read_idx_folder(path: Path) -> None:
    """Read the folder that a file lies in, which else is whole."""
    load_source(DataSpec(source=f"idx:{path.parent}"))


def read_image_file(path: Path) -> None:
    for image in fuzz.image_reader().read([str(path)]):
        if image.error:
            raise DataError(image.error)


def read_array(path: Path) -> None:
    """Read an array as all that it may be, and raise only where it is none of them."""
    refused = []
    for read in (read_external, read_labels, read_image_file):
        try:
            read(path)
        except DataError as error:
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]


LIARS = {
    "npz": Liars("a.npz", lambda path: load_source(DataSpec(source=f"npz:{path}")), DataError, NPZ),
    "idx": Liars("train-images-idx3-ubyte", read_idx_folder, DataError, IDX),
    "gzip": Liars("train-images-idx3-ubyte.gz", read_idx_folder, DataError, GZIP),
    "npy": Liars("a.npy", read_array, DataError, NPY),
    "png": Liars("a.png", read_image_file, DataError, PNG),
    "jpeg": Liars("a.jpg", read_image_file, DataError, JPEG),
    "images": Liars("a.tif", read_image_file, DataError, IMAGES),
    "safetensors": Liars(
        "model.safetensors", lambda path: load_checkpoint(path, device=CPU), CheckpointError, CHECKPOINT
    ),
    "pack": Liars(
        "a.safetensors",
        lambda path: (unpack(path, path.with_name("out")), read_pack(path, device=CPU)),
        CheckpointError,
        PACK,
    ),
    "predictions": Liars("test.safetensors", load_predictions, CheckpointError, PREDICTIONS),
    "recipe": Liars("a.toml", lambda path: load_recipe(str(path)), RecipeError, RECIPE),
    "ensemble": Liars("a.toml", read_ensemble_file, CheckpointError, ENSEMBLE),
    "csv": Liars("a.csv", read_external, DataError, CSV),
    "labels": Liars(
        "labels.txt",
        read_labels,
        DataError,
        LABELS,
        odd={name: make for name, make in ODD.items() if make is not os.mkfifo},  # which is an empty text
    ),
    "history": Liars(
        "history.jsonl",
        lambda path: read_history(path.parent),
        CheckpointError,
        HISTORY,
    ),
}
ALL_LIES = [(reader, lie) for reader, liars in LIARS.items() for lie in liars.all]


def test_each_reader_hears_ten_lies_or_more():
    assert {*fuzz.READERS} <= {*LIARS}
    assert all(len(LIARS[reader].all) >= 10 for reader in fuzz.READERS)


@pytest.fixture(scope="module", autouse=True)
def _ready(tmp_path_factory):
    """Load what readers load late, so that it is not counted."""
    for reader in ("png", "safetensors", "predictions", "pack", "recipe"):
        folder = tmp_path_factory.mktemp(reader)
        seed = fuzz.READERS[reader].seeds(tmp_path_factory.mktemp("seeds"))[0]
        fuzz.READERS[reader].read(seed, folder)


@needs_fork
@pytest.mark.parametrize(("reader", "lie"), ALL_LIES, ids=[f"{reader}: {lie}" for reader, lie in ALL_LIES])
def test_a_lie_is_refused_soon_and_in_little_memory(reader, lie, tmp_path):
    liars = LIARS[reader]
    if reader in ("idx", "gzip"):
        write_idx_folder(tmp_path, *draw_quadrants(4, size=6))
    path = tmp_path / liars.name
    tell = liars.all[lie]
    if lie in liars.odd or reader == "gzip":  # which stands in the place of the whole file
        path.with_name(path.name.removesuffix(".gz")).unlink(missing_ok=True)
    if isinstance(tell, bytes):
        path.write_bytes(tell)
    else:
        tell(path)
    before = {place.name for place in tmp_path.iterdir()}
    outcome = measure(lambda: liars.read(path))
    if outcome.seconds > SECONDS:  # on a machine that does other things, too, perhaps because of these
        outcome = measure(lambda: liars.read(path))
    assert liars.error.__name__ in outcome.family, outcome
    assert outcome.seconds <= SECONDS
    assert outcome.memory <= MEMORY
    assert printable(outcome.said.replace("\n", "")) == outcome.said.replace("\n", "")
    assert {place.name for place in tmp_path.iterdir()} == before


@needs_fork
@pytest.mark.slow
def test_the_largest_image_is_held_no_more_than_twice(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 8000, 8000, 8, 4, 0, 0, 0)  # grey and alpha
    (tmp_path / "a.png").write_bytes(chunks(header, b"IDAT" + bytes(16_001 * 8000), b"IEND"))
    outcome = measure(lambda: read_image_file(tmp_path / "a.png"))
    assert outcome.kind == "answer", outcome
    assert outcome.memory <= 400 << 20


def test_the_limits_are_told():
    told = (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8")
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
        assert re.search(rf"\b{count:,}\b", told), count
    for size in (*sizes, MAX_ENSEMBLE_BYTES, MAX_HISTORY_BYTES, LONGEST_PATH):
        power = min((size.bit_length() - 1) // 10, 3)
        assert f" {size >> 10 * power} {('', 'K', 'M', 'G')[power]}iB" in told, size


# --- mutations --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return {name: reader.seeds(tmp_path_factory.mktemp(name)) for name, reader in fuzz.READERS.items()}


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8)), min_size=1, max_size=3)


@pytest.mark.parametrize("reader", fuzz.READERS)
@given(number=st.integers(0, 99), seed=st.integers(0, 2**32), edits=EDITS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_changed_there_is_an_answer_or_an_error_of_ours(
    reader, number, seed, edits, seeds, tmp_path_factory
):
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
def test_mutations_begin_with_what_is_valid_and_put_it_together_as_it_was(reader, seeds, tmp_path):
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
def test_the_fuzzer_tries_the_same_again():
    pytest.importorskip("atheris")
    one, same, other = (fuzz.try_reader("history", 300, seed) for seed in (1, 1, 2))
    assert one["crc32"] == same["crc32"] != other["crc32"]


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


def test_a_file_may_have_so_many_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert read_bytes(tmp_path / "a", 3) == b"123"
    with pytest.raises(DataError, match="a is larger than 2 bytes"):
        read_bytes(tmp_path / "a", 2, DataError)
    with pytest.raises(FmcliError, match="null"):
        read_bytes(tmp_path / "\0", 2)


def written_late(content: bytes) -> Path:
    """A pipe as the shell's <(…) gives it, whose other end is slow."""
    end, other = os.pipe()

    def write() -> None:
        for place in range(0, len(content), 1000):
            time.sleep(0.02)
            os.write(other, content[place : place + 1000])
        os.close(other)

    threading.Thread(target=write).start()
    return Path(f"/dev/fd/{end}")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no names")
def test_what_a_shell_substitutes_is_read_to_its_end(cli):
    text = Path(fuzz.RECIPES / "quick.toml").read_bytes()
    assert read_text(written_late(text), 1 << 20, DataError) == text.decode()
    assert load_recipe(str(written_late(text))).members
    assert cli("recipe", "validate", written_late(text)).status == 0
    assert read_labels(written_late(b"coat\nbag\n")) == ("coat", "bag")


# --- commands ---------------------------------------------------------------------------------------------

STEERING = ("\x1b]0;x\x07\x9b31m", "a\nb\u202e")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A member's folder."""
    return fuzz.tiny_checkpoints(tmp_path_factory.mktemp("member"))[0].parent


@pytest.fixture(scope="module")
def steering_checkpoint(tmp_path_factory):
    """A member whose classes have names that would steer a terminal."""
    path = tmp_path_factory.mktemp("steering") / "model.safetensors"
    with_json("header", lambda header: changed(header, "class_names", to=STEERING))(path)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, link("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predict", "ODD", "x.png"], "m.safetensors"),
        (["predict", "MODEL", "ODD"], "x.png"),
        (["predict", "MODEL", "ODD"], "x.npy"),
        (["predict", "MODEL", "ODD"], "x-ubyte.gz"),
        (["evaluate", "ODD"], "run"),
        (["ensemble", "evaluate", "ODD"], "e.toml"),
        (["ensemble", "evaluate", "ODD"], "p.csv"),
        (["ensemble", "evaluate", "ODD"], "p.npy"),
        (["ensemble", "evaluate", "ODD"], "p.safetensors"),
        (["ensemble", "unpack", "ODD", "--output", "out"], "p.safetensors"),
        (["data", "info", "ODD"], "e.toml"),
        (["recipe", "validate", "ODD"], "r.toml"),
        (["train", "--recipe", "ODD", "--output", "out"], "r.toml"),
        (["plot", "curves", "ODD", "--output", "out.png"], "history.jsonl"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_no_command_waits_for_a_pipe_or_reads_a_device_to_its_end(
    words, name, make, checkpoint, cli, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    result = cli(*({"ODD": name, "MODEL": checkpoint}.get(word, word) for word in words))
    assert result.status in (2, 3, 4)
    assert "error" in result.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


NAMES = ["a b.png", "a\nb.png", "\x1b]0;x\x07.png", "\x9b31m.png", "\udcff.png", "a\u202eb.png"]


@pytest.fixture
def oddly_named_images(tmp_path, monkeypatch):
    """Images whose names would steer a terminal, in the current folder, and one that is not there."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Image.new("L", (6, 6)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
    return [*NAMES, "missing\x1b[2J.png"]


class Tty(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.mark.parametrize("format_", ["table", "json", "jsonl", "csv"])
def test_names_steer_no_terminal(format_, steering_checkpoint, named_images, monkeypatch):
    streams = [Tty(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    words = [
        "predict",
        str(steering_checkpoint),
        *oddly_named_images,
        "--format",
        format_,
        "--top",
        "2",
        "--verbose",
    ]
    assert run(words) == 3
    shown = "".join(stream.buffer.getvalue().decode() for stream in streams)
    shown = re.sub(r"\x1b\[[\d;]*m|\n", "", shown)  # fmcli's own colours
    assert printable(shown) == shown
    assert re.search(r"\\(x|u00)1b\]0;x\\(x|u00)07", shown)


def test_what_goes_into_a_pipe_is_what_it_was(steering_checkpoint, named_images, cli):
    for format_, read in (("csv", lambda result: result.rows), ("jsonl", lambda result: result.records)):
        records = read(cli("predict", steering_checkpoint, *NAMES[:4], "--format", format_))
        assert [record["input"] for record in records] == NAMES[:4]
        assert {record["label"] for record in records} <= {*STEERING}


def test_a_path_on_standard_input_has_an_end(checkpoint):
    command = [sys.executable, "-m", "fmcli", "predict", str(checkpoint), "-", "--format", "jsonl"]
    with Path("/dev/zero").open("rb") as zero:
        done = subprocess.run(command, stdin=zero, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "longer than 65536 bytes" in done.stderr
