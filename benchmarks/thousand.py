"""Measure the time and memory to combine the predictions of 1,000 members, and to select 50 of these members.

    python -m benchmarks.thousand

Writes random predictions for 10,000 images and 10 classes, and runs the commands several times, as a user does. Writes
the median seconds and peak memory of the whole process as JSON to benchmarks/results/, with hardware and versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.processes import FMCLI
from fmcli.ensemble.predictions import Predictions, predictions_file, save_predictions

RESULT = Path(__file__).parent / "results" / "thousand.json"
N_IMAGES, N_CLASSES = 10_000, 10


def draw_members(folder: Path, split: str, n_members: int, *, seed: int) -> Path:
    """Write predictions of members whose errors are partly correlated. Return their folder."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, N_CLASSES, N_IMAGES)
    truth = np.eye(N_CLASSES, dtype=np.float32)[labels]
    common = draw.normal(size=truth.shape).astype(np.float32)
    names = tuple(str(label) for label in range(N_CLASSES))
    for number in range(n_members):
        own = draw.normal(size=truth.shape).astype(np.float32)
        member = f"m{number:04}"
        predictions = Predictions(3.4 * truth + common + own, labels, names, member, split, data_digest=f"drawn-{seed}")
        save_predictions(folder / member / predictions_file(split), predictions)
    return folder


def time_command(*arguments: str) -> dict[str, float]:
    """Return seconds and peak memory of a whole process."""
    started = time.perf_counter()
    process = subprocess.Popen([*FMCLI, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"fmcli {arguments[:2]} failed")
    return {"seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20}


def main() -> None:
    """Draw, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test = draw_members(folder / "test", "test", arguments.members, seed=0)
        validation = draw_members(folder / "validation", "validation", arguments.members, seed=1)
        commands = {
            "combine": ["ensemble", "evaluate", str(test), "--format", "json"],
            "select 50": ["ensemble", "select", str(validation), "--size", "50", "--output", str(folder / "50.toml")],
        }
        runs = {
            name: [
                time_command(*words, "--overwrite" if "select" in name else "--quiet") for _ in range(arguments.repeats)
            ]
            for name, words in commands.items()
        }
    result: dict[str, Any] = {"machine": describe(), "members": arguments.members}
    for name, measured in runs.items():
        result[name] = {key: round(statistics.median(run[key] for run in measured), 3) for key in measured[0]}
        print(f"{name}: {result[name]['seconds']:.1f} s, {result[name]['peak_gib']:.2f} GiB")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
