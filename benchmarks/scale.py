"""Measure the time and memory of training for different numbers of images and members.

    python -m benchmarks.scale
    python -m benchmarks.scale --images 10000 100000 --members 1 2

Writes shifted images of Fashion-MNIST to IDX files and trains a network for one epoch. The network is so small that
loading the images takes as long as training on them. Writes seconds, images per second and memory of the whole process
as JSON to benchmarks/results/, with hardware and versions. Memory that is mapped from a file is counted separately,
because the operating system can reclaim it at any time.
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
BLOCK_IMAGES = 10_000  # per write
POLL_INTERVAL_S = 0.05  # between memory readings
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
    """Write training images and 1,000 test images. Return their folder."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, count in (("train", n_images), ("t10k", 1000)):
        with (
            (folder / f"{split}-images-idx3-ubyte").open("wb") as images,
            (folder / f"{split}-labels-idx1-ubyte").open("wb") as labels,
        ):
            images.write(struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28))
            labels.write(struct.pack(">BBBB1I", 0, 0, 8, 1, count))
            for start in range(0, count, BLOCK_IMAGES):
                chosen = draw.integers(0, len(originals), min(BLOCK_IMAGES, count - start))
                moved = np.roll(originals.take(chosen)[:, 0], draw.integers(-2, 3, 2), axis=(1, 2))
                images.write(moved.tobytes())
                labels.write(originals.labels[chosen].astype(np.uint8).tobytes())
    return folder


def train(folder: Path, n_members: int, threads: int) -> dict[str, float]:
    """Train members for one epoch with `fmcli train`. Return seconds, images per second and peak memory."""
    with tempfile.TemporaryDirectory() as temporary:
        recipe = Path(temporary, "scale.toml")
        members = "".join(f'[[members]]\nname = "m{number}"\n' for number in range(n_members))
        recipe.write_text(RECIPE.format(folder=folder) + members, "utf-8")
        words = ["train", "--recipe", str(recipe), "--output", f"{temporary}/run", "--threads", str(threads)]
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
    """Record the peak memory of a process in KiB until it ends: its own memory and mapped files, separately."""
    names = {"RssAnon": "own", "RssFile": "mapped"}
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        status = dict(line.split(":", 1) for line in lines)
        if "RssAnon" not in status:  # the process has ended
            return
        for key, name in names.items():
            memory[name] = max(memory.get(name, 0), int(status[key].split()[0]))
        time.sleep(POLL_INTERVAL_S)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return one result per number of images and per number of members."""
    originals = load_source(DataSpec(source="fashion-mnist")).train
    lines: dict[str, list[dict[str, Any]]] = {"images": [], "members": []}
    plans: Sequence[tuple[str, int, int]] = [
        *(("images", count, 1) for count in arguments.images),
        *(("members", arguments.each, count) for count in arguments.members),
    ]
    for kind, n_images, n_members in plans:
        image_folder = folder / str(n_images)
        if not image_folder.is_dir():
            draw_images(image_folder, n_images, originals, seed=0)
        line = {"images": n_images, "members": n_members, **train(image_folder, n_members, arguments.threads)}
        print(line, flush=True)
        lines[kind].append(line)
    return lines


def main() -> None:
    """Draw, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--each", type=int, default=100_000, help="number of images for each number of members")
    parser.add_argument("--threads", type=int, default=count_cores())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(arguments, Path(folder))
    result = {"machine": describe(), "threads": arguments.threads, **lines}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
