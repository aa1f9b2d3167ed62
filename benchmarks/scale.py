"""How the cost of training grows with the number of images, up to more than memory should hold, and of members.

    python -m benchmarks.scale
    python -m benchmarks.scale --images 10000 100000 --members 1 2

Draws images from those of Fashion-MNIST, moved by some pixels, into IDX files, and trains a network so small that
bringing the images takes as long as learning from them, for one epoch. Writes seconds, images a second and memory of
the whole process as JSON under benchmarks/results/, with hardware and versions. Memory is what the process itself
holds; pages of the mapped file, which the system takes back as it likes, are counted beside it.
"""

import argparse
import json
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.processes import FMCLI
from fmcli.data import ImageSet, load_source
from fmcli.hardware.cpu import count_cores
from fmcli.recipe import DataSpec

RESULT = Path(__file__).parent / "results" / "scale.json"
BLOCK = 10_000  # images written at once
EVERY = 0.05  # seconds between two looks at the memory
RECIPE = """
[data]
source = "idx:{folder}"
[model]
family = "sequential"
layers = [
  {{ type = "flatten" }},
  {{ type = "dense", units = 32, activation = "relu" }},
  {{ type = "dense", units = 10 }},
]
[trainer]
epochs = 1
batch_size = 500
"""


def draw_images(folder: Path, n_images: int, originals: ImageSet, *, seed: int) -> Path:
    """Write images to train on, and 1,000 to test; return their folder."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", n_images), ("t10k", 1000)):
        with (
            (folder / f"{split}-images-idx3-ubyte").open("wb") as images,
            (folder / f"{split}-labels-idx1-ubyte").open("wb") as labels,
        ):
            images.write(struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28))
            labels.write(struct.pack(">BBBB1I", 0, 0, 8, 1, count))
            for start in range(0, count, BLOCK):
                chosen = draw.integers(0, len(originals), min(BLOCK, count - start))
                moved = np.roll(originals.take(chosen)[:, 0], draw.integers(-2, 3, 2), axis=(1, 2))
                images.write(moved.tobytes())
                labels.write(originals.labels[chosen].astype(np.uint8).tobytes())
    return folder


def train(folder: Path, n_members: int, threads: int) -> dict[str, float]:
    """Train so many members for an epoch by the command; return seconds, images a second and the most memory."""
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place, "scale.toml")
        members = "".join(f'[[members]]\nname = "m{number}"\n' for number in range(n_members))
        recipe.write_text(RECIPE.format(folder=folder) + members, "utf-8")
        words = ["train", "--recipe", str(recipe), "--output", f"{place}/run", "--threads", str(threads)]
        started = time.perf_counter()
        process = subprocess.Popen([*FMCLI, *words, "--quiet", "--format", "json"], stdout=subprocess.PIPE, text=True)
        memory: dict[str, int] = {}
        watcher = threading.Thread(target=watch, args=(process.pid, memory))
        watcher.start()
        output = process.communicate()[0]
        seconds = time.perf_counter() - started
        watcher.join()
    if process.returncode:
        raise SystemExit(f"training failed with exit status {process.returncode}")
    rates = [epoch["images_per_second"] for epoch in json.loads(output)["epochs"]]
    return {
        "seconds": round(seconds, 2),
        "images_per_second": round(n_members / sum(1 / rate for rate in rates)),
        **{f"{name}_gib": round(size / 2**20, 3) for name, size in memory.items()},
    }


def watch(pid: int, memory: dict[str, int]) -> None:
    """Note the most memory of a process while it lives, in KiB: its own, and that of files it has mapped."""
    names = {"RssAnon": "own", "RssFile": "mapped"}
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        said = dict(line.split(":", 1) for line in lines)
        if "RssAnon" not in said:  # it is over
            return
        for key, name in names.items():
            memory[name] = max(memory.get(name, 0), int(said[key].split()[0]))
        time.sleep(EVERY)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a line for each number of images, and for each number of members."""
    originals = load_source(DataSpec(source="fashion-mnist")).train
    lines: dict[str, list[dict[str, Any]]] = {"images": [], "members": []}
    plans: Sequence[tuple[str, int, int]] = [
        *(("images", count, 1) for count in arguments.images),
        *(("members", arguments.each, count) for count in arguments.members),
    ]
    for kind, n_images, n_members in plans:
        place = folder / str(n_images)
        if not place.is_dir():
            draw_images(place, n_images, originals, seed=0)
        line = {"images": n_images, "members": n_members, **train(place, n_members, arguments.threads)}
        print(line, flush=True)
        lines[kind].append(line)
    return lines


def main() -> None:
    """Draw, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--each", type=int, default=100_000, help="images for each number of members")
    parser.add_argument("--threads", type=int, default=count_cores())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(arguments, Path(folder))
    result = {"machine": describe(), "threads": arguments.threads, **lines}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
