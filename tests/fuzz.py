"""Fuzz readers with mutated files: they answer or refuse with little work and memory, and write nothing elsewhere.

    python -m tests.fuzz png 100000
    python -m tests.fuzz png 100000 7      # another seed
    python -m tests.fuzz all               # 100,000 inputs for each reader: an hour or two

Prints one JSON object for each reader: the number of inputs and of answers, the time of the slowest input, the growth
of memory, and each problem with its input. atheris (libFuzzer) mutates bytes and keeps inputs that reach new code. Most
mutations apply to the parts inside a format; its lengths, checksums and digests are corrected afterwards. The same seed
gives the same inputs. `test_hostile.py` runs short forms.
"""

import ast
import base64
import copy
import gzip
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import tomli_w

DEFAULT_INPUTS = 100_000
MAX_WORK = 250.0  # times the reference work: five seconds where that takes 20 ms
MAX_MEMORY_BYTES = 1 << 30  # growth after the libraries are loaded
MAX_INPUT_BYTES = 1 << 15
INSTRUMENTED = ["fmcli", "PIL", "tomllib", "gzip", "zipfile"]
RECIPES = Path(__file__).parents[1] / "recipes"
Parts = list[bytes]


@dataclass(frozen=True)
class Reader:
    """A reader under test and the format that it reads.

    Args:
        seeds: Returns valid inputs, made in a folder.
        read: Reads an input in an empty folder; does not raise if the input is refused with an `FmcliError`.
        take_apart: Returns the parts inside the format.
        put_together: Inverse of `take_apart`; accepts any parts.
        load: Parses a part that is a table of values.
        dump: Inverse of `load`.
    """

    seeds: Callable[[Path], Parts]
    read: Callable[[bytes, Path], None]
    take_apart: Callable[[bytes], Parts] = lambda content: [content]
    put_together: Callable[[Parts], bytes] = b"".join
    load: Callable[[str], Any] = json.loads
    dump: Callable[[Any], str] = json.dumps


# --- images -----------------------------------------------------------------------------------------------


def idx_seeds(folder: Path) -> Parts:
    import numpy as np

    from tests.helpers import draw_quadrants, idx_bytes

    images, labels = draw_quadrants(4, size=6)
    colours = np.repeat(images[..., None], 3, axis=3)
    return [idx_bytes(array) for array in (images, colours, labels, labels.astype("i4"))]


def read_idx_files(content: bytes, folder: Path, suffix: str = "") -> None:
    """Read a file as training images and as images to label, then as labels."""
    from fmcli.data import load_source
    from fmcli.recipe import DataSpec
    from tests.helpers import draw_quadrants, write_idx_folder

    whole = folder.parent / "whole"
    if not whole.is_dir():
        write_idx_folder(whole, *draw_quadrants(4, size=6))
    for part in ("images-idx3", "labels-idx1"):
        target = folder / f"train-{part}-ubyte"
        for path in whole.iterdir():
            if path.name != target.name and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        target.unlink(missing_ok=True)
        target = target.with_name(target.name + suffix)
        target.write_bytes(content)
        attempt(lambda: load_source(DataSpec(source=f"idx:{folder}")))
        if part == "images-idx3":
            label(target)
        target.unlink()


def gzip_parts(content: bytes) -> Parts:
    return [gzip.decompress(content)]


def gzipped(parts: Parts) -> bytes:
    return gzip.compress(parts[0], compresslevel=1, mtime=0)


def npy_seeds(folder: Path) -> Parts:
    import numpy as np

    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), 4)
    images = generator.integers(0, 256, (3, 6, 5), np.uint8)
    arrays = [probabilities, probabilities.astype("f2"), np.asfortranarray(probabilities), images, images[0]]
    return [npy_bytes(array) for array in (*arrays, np.arange(4), np.arange(4, dtype=">u2"))]


def npy_bytes(array: Any) -> bytes:
    import numpy as np

    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def read_npy(content: bytes, folder: Path) -> None:
    from fmcli.ensemble.external import read_external, read_labels

    path = folder / "a.npy"
    path.write_bytes(content)
    label(path)
    attempt(lambda: read_external(path))
    attempt(lambda: read_labels(path))


def npy_parts(content: bytes) -> Parts:
    end = 10 + int.from_bytes(content[8:10], "little")
    return [content[6:8], content[10:end], content[end:]]


def npy_from(parts: Parts) -> bytes:
    version, header, values = parts
    length = struct.pack("<H", len(header) % 65536) if version[:1] < b"\2" else struct.pack("<I", len(header))
    return b"\x93NUMPY" + version + length + header + values


def npz_seeds(folder: Path) -> Parts:
    import numpy as np

    from tests.helpers import draw_quadrants

    images, labels = draw_quadrants(4, size=6)
    colours = np.repeat(images[..., None], 3, axis=3)
    seeds = []
    for save, names, pixels, classes in (
        (np.savez, ("train_images", "train_labels", "test_images", "test_labels"), images, labels[:, None]),
        (np.savez_compressed, ("x_train", "y_train", "x_test", "y_test"), colours, labels.astype(">i8")),
    ):
        file = BytesIO()
        save(file, **dict(zip(names, (pixels, classes, pixels, classes), strict=True)))
        seeds.append(file.getvalue())
    return seeds


def read_archive(content: bytes, folder: Path) -> None:
    from fmcli.data import load_source
    from fmcli.recipe import DataSpec

    path = folder / "a.npz"
    path.write_bytes(content)
    attempt(lambda: load_source(DataSpec(source=f"npz:{path}")))


def npz_parts(content: bytes) -> Parts:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        return [part for name in archive.namelist() for part in (name.encode(), *npy_parts(archive.read(name)))]


def npz_from(parts: Parts) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicate names
        for start in range(0, len(parts), 4):
            name, *own = parts[start : start + 4]
            archive.writestr(zipfile.ZipInfo(name.decode("latin-1")), npy_from(own))
    return file.getvalue()


def image_seeds(*formats: str) -> Callable[[Path], Parts]:
    def make(folder: Path) -> Parts:
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (12, 11, 4), np.uint8)
        whole = Image.fromarray(pixels)
        turned = Image.Exif()
        turned[0x112] = 6
        contents = []
        for kind in formats:
            for mode in ("RGBA", "RGB", "L", "P", "1", "I;16", "CMYK", "F"):
                image = (
                    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else whole.convert(mode)
                )
                for options in ({}, {"exif": turned, "progressive": True, "compression": "tiff_lzw"}):
                    file = BytesIO()
                    try:
                        image.save(file, kind, **options)
                    except (OSError, ValueError):  # the format does not have this mode
                        continue
                    contents.append(file.getvalue())
        return contents

    return make


@cache
def image_reader() -> Any:
    from fmcli.data.image_files import ImageReader

    return ImageReader((1, 8, 8), "dark")


def label(path: Path) -> None:
    """Read images as `fmcli predict` does, which continues after unreadable ones."""
    for image in image_reader().read([str(path)]):
        assert image.error or image.pixels.shape == (1, 8, 8)
        OUTCOMES.append(image.error is None)


def read_image_file(content: bytes, folder: Path) -> None:
    (folder / "a.png").write_bytes(content)  # Pillow does not look at the suffix
    label(folder / "a.png")


def png_parts(content: bytes) -> Parts:
    parts, start = [content[:8]], 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind, data = content[start + 4 : start + 8], content[start + 8 : end - 4]
        parts.append(kind + (zlib.decompress(data) if kind == b"IDAT" else data))
        start = end
    return parts


def png_from(parts: Parts) -> bytes:
    content = parts[0]
    for part in parts[1:]:
        kind, data = part[:4], part[4:]
        data = zlib.compress(data, 1) if kind == b"IDAT" else data
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


# --- tensors ----------------------------------------------------------------------------------------------


def tiny_checkpoints(folder: Path) -> list[Path]:
    """Write a member of each family."""
    import torch

    from fmcli.checkpoints.checkpoint import Header, save_checkpoint
    from fmcli.networks.build import build_model
    from fmcli.networks.tracing import trace_network
    from fmcli.recipe import load_recipe

    (folder / "families.toml").write_text(FAMILIES, "utf-8")
    recipe = load_recipe(str(folder / "families.toml"))
    paths = []
    for member in recipe.members:
        traces = trace_network(member.model, (1, 6, 6), 2)
        model = build_model(traces, generator=torch.Generator().manual_seed(0))
        header = Header(
            member=member,
            data=recipe.data,
            ensemble=recipe.ensemble,
            input_shape=(1, 6, 6),
            class_names=("coat", "bag"),
            mean=(80.0,),
            std=(90.0,),
            background="dark",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            epochs=1,
            data_digests={"test": "0" * 64},
            recipe_digest="0" * 64,
            versions={"fmcli": "0"},
            trained_on={"device": "cpu"},
        )
        paths.append(folder / member.name / "model.safetensors")
        save_checkpoint(paths[-1], model, header)
    return paths


FAMILIES = """
[data]
source = "idx:nowhere"
[[members]]
name = "pooled"
model = { family = "kernel-cnn", form = "pooled", widths = [2, 2], depth = 1, kernel_size = 3 }
[[members]]
name = "residual"
model = { family = "kernel-resnet", widths = [2, 3], kernel_size = 3, squeeze_excite = true, stochastic_depth = 0.1 }
[[members]]
name = "spelled"
[members.model]
family = "sequential"
layers = [
  { type = "conv", filters = 2, kernel_size = [3, 2], activation = "relu" },
  { type = "max-pool" },
  { type = "residual", body = [{ type = "conv", filters = 2, kernel_size = 1, groups = 2 }] },
  { type = "flatten" },
  { type = "dense", units = 2 },
]
"""


def checkpoint_seeds(folder: Path) -> Parts:
    return [path.read_bytes() for path in tiny_checkpoints(folder)]


def read_checkpoint(content: bytes, folder: Path) -> None:
    from fmcli.checkpoints.checkpoint import read_header

    path = folder / "model.safetensors"
    path.write_bytes(content)
    attempt(lambda: read_header(path))
    attempt(lambda: use(path))


def use(path: Path) -> None:
    """Label an image with the members of a file."""
    from numpy import uint8, zeros

    from fmcli.data import LoadedImage
    from fmcli.ensemble import Combiner, make_rule
    from fmcli.members.inference import label_images
    from fmcli.members.pool import open_pool

    members = open_pool([path], device="cpu").require_networks()
    image = LoadedImage("blank", None, zeros(members[0].training.input_shape, uint8))
    list(label_images(members, [image], Combiner(make_rule("soft"))))


def pack_seeds(folder: Path) -> Parts:
    from fmcli.checkpoints.pack import write_pack
    from fmcli.ensemble import Combiner, make_rule
    from fmcli.ensemble.file import MemberPath

    members = [MemberPath(path.parent.name, path) for path in tiny_checkpoints(folder)]
    (members[0].path.parent / "history.jsonl").write_bytes(history_seeds(folder)[0])
    write_pack(folder / "pack.safetensors", members, Combiner(make_rule("weighted-soft", weights=(0.4, 0.3, 0.3))))
    return [(folder / "pack.safetensors").read_bytes()]


def read_packed(content: bytes, folder: Path) -> None:
    from fmcli.checkpoints.pack import unpack

    path = folder / "pack.safetensors"
    path.write_bytes(content)
    attempt(lambda: use(path))
    attempt(lambda: unpack(path, folder / "unpacked"))


def predictions_seeds(folder: Path) -> Parts:
    import numpy as np

    from fmcli.ensemble.predictions import Predictions, save_predictions

    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    save_predictions(folder / "test.safetensors", Predictions(logits, np.arange(4) % 3, tuple("abc"), "k3", "test"))
    return [(folder / "test.safetensors").read_bytes()]


def read_predictions(content: bytes, folder: Path) -> None:
    from fmcli.ensemble.predictions import load_predictions

    (folder / "test.safetensors").write_bytes(content)
    attempt(lambda: load_predictions(folder / "test.safetensors"))


def safetensors_parts(content: bytes) -> Parts:
    """Return the list of tensors, each text of the header with its name, and the numbers."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    texts = [f"{name}\0{text}".encode() for name, text in header.pop("__metadata__").items()]
    return [json.dumps(header).encode(), *texts, content[end:]]


def safetensors_from(parts: Parts) -> bytes:
    """Put a file together with the digest that the reader expects."""
    tensors, *texts, numbers = parts
    metadata = dict(text.decode(errors="replace").partition("\0")[::2] for text in texts)
    try:
        header = {**json.loads(tensors), "__metadata__": metadata}
    except (ValueError, TypeError, RecursionError):
        return len(tensors).to_bytes(8, "little") + tensors + numbers
    if metadata.pop("digest", None) is not None:
        metadata["digest"] = digest_of(header, numbers)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def digest_of(header: dict[str, Any], numbers: bytes) -> str:
    import safetensors.numpy
    import safetensors.torch

    import fmcli.checkpoints.tensors
    import fmcli.ensemble.predictions

    text, said = json.dumps(header).encode(), header["__metadata__"]
    content = len(text).to_bytes(8, "little") + text + numbers
    try:
        if said.get("format") == fmcli.ensemble.predictions.FORMAT.name:
            return fmcli.ensemble.predictions._digest(said, safetensors.numpy.load(content))
        return fmcli.checkpoints.tensors._digest(safetensors.torch.load(content), said)
    except Exception:  # the mutated file has no digest
        return ""


# --- texts ------------------------------------------------------------------------------------------------


def recipe_seeds(folder: Path) -> Parts:
    return [FAMILIES.encode(), *(path.read_bytes() for path in sorted(RECIPES.glob("*.toml")))]


def read_recipe(content: bytes, folder: Path) -> None:
    from fmcli.networks.tracing import trace_recipe
    from fmcli.recipe import SourceFacts, dump_recipe, load_recipe

    (folder / "a.toml").write_bytes(content)
    recipe = attempt(lambda: load_recipe(str(folder / "a.toml")))
    if recipe is not None:
        dump_recipe(recipe)
        attempt(lambda: trace_recipe(recipe, SourceFacts((1, 28, 28), tuple("abcdefghij"))))


ENSEMBLE = """
format = "fmcli-ensemble-1"
vote = "stacking"
tie = "probability"
temperature = 1.5
[fitted_on]
split = "validation"
images = 40
data_digest = "d"
accuracy = 0.9
[[members]]
name = "k3"
path = "run/k3"
weight = 0.25
group = "3"
[[members]]
name = "k5"
path = "run/k5"
weight = 0.75
group = "5"
[stacking]
coefficients = [[0.1, -0.2, 3.0, 4.0], [1.0, 2.0, -3.0, 4e-3]]
intercepts = [0.0, 1.0]
"""


def ensemble_seeds(folder: Path) -> Parts:
    return [ENSEMBLE.encode(), ENSEMBLE.partition("[stacking]")[0].replace("stacking", "two-level").encode()]


def read_ensemble(content: bytes, folder: Path) -> None:
    import numpy as np

    from fmcli.ensemble.file import is_ensemble_file, read_ensemble_file

    path = folder / "a.toml"
    path.write_bytes(content)
    is_ensemble_file(path)
    ensemble, paths = attempt(lambda: read_ensemble_file(path)) or (None, [])
    if ensemble is None:
        return
    logits = np.random.default_rng(0).normal(size=(len(paths), 3, 2)).astype(np.float32)
    attempt(lambda: ensemble.combiner()(logits))
    assert all(path.resolve().is_relative_to(folder.resolve()) for path in paths if "\0" not in str(path))


def csv_seeds(folder: Path) -> Parts:
    return [
        b"coat,bag,label\n0.25,0.75,bag\n1,0,coat\n",
        b'\xef\xbb\xbf"a,b";c\r\n"0.5";0.5\r\n',
        b'label,"c ""x""",d\r\n0,1e-3,0.999\r\n\r\n1,.5,.5\r\n',
        "ä,b\n0,1\n".encode(),
        b"coat\nbag\n",
        b"label\n1\n0\n",
    ]


def read_csv(content: bytes, folder: Path) -> None:
    from fmcli.ensemble.external import read_external, read_labels, to_predictions

    (folder / "a.csv").write_bytes(content)
    labels = attempt(lambda: read_labels(folder / "a.csv"))
    external = attempt(lambda: read_external(folder / "a.csv"))
    if external is not None:
        attempt(lambda: to_predictions(external, name="a", split="test", labels=labels))


def history_seeds(folder: Path) -> Parts:
    epoch = '{"member": "k3", "epoch": 1, "lr": 0.001, "train_loss": 0.5, "train_accuracy": 0.8, "validation_loss": '
    rest = ', "validation_accuracy": null, "seconds": 1.5, "images_per_second": 900.0, "retrained": false}\n'
    return [history_from([f"{epoch}null{rest}".encode(), f"{epoch}NaN{rest}".encode()])]


def history_from(lines: Parts) -> bytes:
    """Join lines, giving each line that is an object the digest that the reader expects."""
    from fmcli.checkpoints.history import _with_digest

    def sign(line: bytes) -> bytes:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return line
        if not isinstance(entry, dict):
            return line
        entry.pop("digest", None)
        return json.dumps(_with_digest(entry)).encode() + b"\n"

    return b"".join(map(sign, lines))


def read_epochs(content: bytes, folder: Path) -> None:
    from fmcli.checkpoints.history import best_epoch, read_history

    (folder / "history.jsonl").write_bytes(content)
    attempt(lambda: best_epoch(read_history(folder), "loss"))


READERS = {
    "idx": Reader(idx_seeds, read_idx_files),
    "gzip": Reader(
        lambda folder: [gzipped([content]) for content in idx_seeds(folder)],
        lambda content, folder: read_idx_files(content, folder, ".gz"),
        gzip_parts,
        gzipped,
    ),
    "npy": Reader(npy_seeds, read_npy, npy_parts, npy_from, ast.literal_eval, repr),
    "npz": Reader(npz_seeds, read_archive, npz_parts, npz_from, ast.literal_eval, repr),
    "png": Reader(image_seeds("PNG"), read_image_file, png_parts, png_from),
    "jpeg": Reader(image_seeds("JPEG"), read_image_file),
    "images": Reader(image_seeds("TIFF", "GIF", "WEBP", "BMP", "PPM"), read_image_file),
    "safetensors": Reader(checkpoint_seeds, read_checkpoint, safetensors_parts, safetensors_from),
    "pack": Reader(pack_seeds, read_packed, safetensors_parts, safetensors_from),
    "predictions": Reader(predictions_seeds, read_predictions, safetensors_parts, safetensors_from),
    "recipe": Reader(recipe_seeds, read_recipe, load=tomllib.loads, dump=tomli_w.dumps),
    "ensemble": Reader(ensemble_seeds, read_ensemble, load=tomllib.loads, dump=tomli_w.dumps),
    "csv": Reader(csv_seeds, read_csv),
    "history": Reader(history_seeds, read_epochs, lambda content: content.splitlines(keepends=True), history_from),
}


OUTCOMES: list[bool] = []
"""Whether each attempt to read the current input gave an answer."""


def attempt(read: Callable[[], Any]) -> Any:
    """Return the result of reading, or None if the input is refused with an `FmcliError`."""
    from fmcli.errors import FmcliError

    try:
        answer = read()
    except FmcliError:
        OUTCOMES.append(False)
        return None
    OUTCOMES.append(True)
    return answer


# --- mutations --------------------------------------------------------------------------------------------

EXTREMES = (
    *(0, 1, 2, 3, -1, 255, 2**16, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, math.inf, math.nan),
    *("", "x", "..", "../x", "/", "C:\\x", "\0", "\x1b[31m", "\n", "é", "a" * 5000, True, False),
)


def mutated(reader: Reader, content: bytes, draw: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    """Mutate an input: values in its texts, its parts, or any bytes.

    Args:
        reader: Reader of the input.
        content: Input.
        draw: Random generator.
        change: Mutates bytes.
    """
    choice = draw.random()
    try:
        parts = reader.take_apart(content)
        index = draw.randrange(len(parts))
        if choice < 0.4:
            parts[index] = with_changed_values(parts[index], reader, draw)
            return reader.put_together(parts)
    except Exception:  # the input has no parts or no values any more
        return change(content)
    if choice > 0.8:
        return change(content)
    for _ in range(draw.choice((1, 1, 2))):
        index = draw.randrange(len(parts))
        parts[index] = change(parts[index])
    return reader.put_together(parts)


def with_changed_values(part: bytes, reader: Reader, draw: random.Random) -> bytes:
    """Replace, remove or move some values in the text of a part, which may start with a name and NUL."""
    name, end, text = part.decode().rpartition("\0")
    value = reader.load(text)
    for _ in range(draw.choice((1, 1, 2, 3))):
        change_value(value, draw)
    return f"{name}{end}{reader.dump(value)}".encode()


def change_value(value: Any, draw: random.Random) -> None:
    """Change one value in a table or list."""
    slots: list[tuple[Any, Any]] = [(value, key) for key in keys_of(value)]
    for table, key in slots:
        slots += [(table[key], inner) for inner in keys_of(table[key])]
    table, key = draw.choice(slots)
    choice = draw.random()
    if isinstance(table[key], str) and table[key].startswith("{") and choice < 0.9:  # JSON in JSON
        inner = json.loads(table[key])
        change_value(inner, draw)
        table[key] = json.dumps(inner)
    elif choice < 0.6:
        table[key] = draw.choice(EXTREMES)
    elif choice < 0.8:
        other, other_key = draw.choice(slots)
        table[key] = copy.deepcopy(other[other_key])
    else:
        del table[key]


def keys_of(value: Any) -> list[Any]:
    """Return the keys of a table or the indices of a list."""
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


# --- the trial --------------------------------------------------------------------------------------------


# Audit events (PEP 578) and the number of their arguments that are paths. `os.remove` is left out, because
# `shutil.rmtree` passes it names without their folder.
PATHS_OF = {"open": 1, "os.mkdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "shutil.rmtree": 1}
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")


@dataclass
class Trial:
    """Results so far.

    Args:
        reader: Reader under test.
        folder: The only folder that may be written to.
    """

    reader: Reader
    folder: Path
    inputs: int = 0
    answered: int = 0
    slowest: float = 0.0
    digest: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = peak_memory()
        self.reference = cpu_seconds(reference_work)
        self.writing = ""
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note writes to other folders, and started programs."""
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        paths = [path for path in arguments[: PATHS_OF.get(event, 0)] if isinstance(path, str | bytes | os.PathLike)]
        outside = any(not Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.folder) for path in paths)
        if outside or event in RUNNING:
            self.writing = f"{event} {arguments!r}"

    def try_input(self, content: bytes) -> None:
        """Read one input and note its problems."""
        folder = self.folder / "input"
        folder.mkdir()
        self.inputs += 1
        self.digest = zlib.crc32(content, self.digest)
        self.writing = ""
        OUTCOMES.clear()
        started = time.process_time()
        try:
            self.reader.read(content, folder)
        except BaseException as error:  # Rust panics are not derived from Exception
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.note(f"{type(error).__name__} in {Path(last.filename).name}, {last.name}: {error}"[:300], content)
        seconds = time.process_time() - started
        self.answered += any(OUTCOMES)
        self.slowest = max(self.slowest, seconds)
        # Measure the reference again before blaming the input: the machine may have become slower.
        if seconds > MAX_WORK * self.reference and seconds > MAX_WORK * cpu_seconds(reference_work):
            self.note("slow", content)
        if peak_memory() - self.base > MAX_MEMORY_BYTES:
            self.note("memory", content)
        if self.writing:
            self.note(f"writes or runs: {self.writing}", content)
        shutil.rmtree(folder)

    def note(self, problem: str, content: bytes) -> None:
        """Keep a problem with the first input that shows it."""
        if len(self.problems) < 20:
            self.problems.setdefault(re.sub(r"\d+", "N", problem), base64.b64encode(content).decode())

    def result(self) -> dict[str, Any]:
        """Return the results for printing."""
        return {
            "inputs": self.inputs,
            "answered": self.answered,
            "slowest_seconds": round(self.slowest, 3),
            "memory_mib": (peak_memory() - self.base) >> 20,
            "crc32": self.digest,
            "problems": self.problems,
        }


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def reference_work() -> None:
    """Do a fixed amount of work in Python and C. It takes 20 ms of CPU time on one core of a slow server."""
    packed = zlib.compress(bytes(range(256)) * 4096)
    text = json.dumps([{"a": number, "b": [number] * 4, "c": str(number)} for number in range(500)])
    for _ in range(4):
        zlib.decompress(packed)
        json.loads(text)
        sorted(json.dumps(number) for number in range(500))


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def fuzz(name: str, count: int, seed: int, folder: Path) -> None:
    """Fuzz a reader with `count` inputs, print the result and exit."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        import fmcli.checkpoints.pack
        import fmcli.data.image_files  # noqa: F401  # they import all other readers
    warnings.simplefilter("error")
    reader = READERS[name]
    work = folder / "work"
    work.mkdir()
    corpus = folder / "corpus"
    corpus.mkdir()
    seeds = reader.seeds(work)
    for number, content in enumerate(seeds):
        (corpus / f"{number:03}").write_bytes(content)
        seed_folder = work / f"seed-{number}"
        seed_folder.mkdir()
        reader.read(content, seed_folder)  # imports the libraries that are imported on first use
    words = {word for content in seeds for word in re.findall(rb"[A-Za-z_-]{3,30}", content)}
    (folder / "words").write_text("".join(f'"{word.decode()}"\n' for word in sorted(words)), "utf-8")
    trial = Trial(reader, work)
    out = os.dup(1)

    def take(content: bytes) -> None:
        trial.try_input(content)
        if trial.inputs == count:
            os.write(out, json.dumps(trial.result()).encode())
            os._exit(0)

    def mutate(content: bytes, largest: int, seed: int) -> bytes:
        def change(part: bytes) -> bytes:
            return atheris.Mutate(part, max(largest - len(content) + len(part), 1))

        draw = random.Random(seed)
        if draw.random() < 0.3:  # most inputs that libFuzzer keeps are refused
            content = draw.choice(seeds)
        return mutated(reader, content, draw, change)[:largest]

    options = [
        f"-seed={seed}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-dict={folder / 'words'}",
        f"-artifact_prefix={folder}/",
        "-timeout=60",  # for readers that wait; computing is limited above
        f"-rss_limit_mb={(trial.base + 2 * MAX_MEMORY_BYTES) >> 20}",
        "-mutate_depth=2",  # more mutations leave few valid inputs
        "-reload=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], take, custom_mutator=mutate)
    atheris.Fuzz()


def try_reader(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Fuzz a reader in another process and return the result."""
    with tempfile.TemporaryDirectory(prefix="fmcli-fuzz-") as folder:
        words = [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--child",
            name,
            str(count),
            str(seed),
            os.path.realpath(folder),
        ]
        done = subprocess.run(
            words,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(RECIPES.parent),
                "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1",
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            check=False,
        )
        if done.returncode == 0 and done.stdout:
            return {"reader": name, **json.loads(done.stdout)}
        lines = done.stderr.decode(errors="replace").splitlines()
        said = "\n".join(line for line in lines if not line.startswith("INFO:"))[-2000:]
        left = {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in Path(folder).glob("*-*")
            if path.is_file()
        }
        return {"reader": name, "problems": {f"it died with {done.returncode}: {said}": left}}


def main() -> None:
    """Fuzz the readers named on the command line."""
    name, *rest = sys.argv[1:]
    if name == "--child":
        fuzz(rest[0], int(rest[1]), int(rest[2]), Path(rest[3]))
    failed = False
    for reader in READERS if name == "all" else [name]:
        started = time.perf_counter()
        result = try_reader(reader, *map(int, rest or [DEFAULT_INPUTS]))
        print(json.dumps({**result, "seconds": round(time.perf_counter() - started, 1)}), flush=True)
        failed |= bool(result["problems"])
    sys.exit(failed)


if __name__ == "__main__":
    main()
