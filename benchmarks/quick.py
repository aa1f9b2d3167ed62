"""What `quick` reaches: accuracy of members and vote over seeds, and how long the commands take.

    python benchmarks/quick.py --seeds 3

Runs the installed `fmcli` as a user does, goes on where it was stopped, writes JSON with hardware and versions
under benchmarks/results/, and prints the README's tables.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fmcli.checkpoint import read_header

FMCLI = str(Path(sys.executable).with_name("fmcli"))
RESULTS = Path(__file__).parent / "results"
STARTUP = {
    "fmcli --help": ["--help"],
    "fmcli train --help": ["train", "--help"],
    "fmcli ensemble evaluate --help": ["ensemble", "evaluate", "--help"],
    "fmcli recipe validate quick": ["recipe", "validate", "quick"],
}


def run(*arguments: str) -> tuple[str, float]:
    """Return what fmcli prints and how many seconds the whole process takes."""
    started = time.perf_counter()
    done = subprocess.run([FMCLI, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout, time.perf_counter() - started


def measure_seed(seed: int, folder: Path, threads: int) -> dict[str, Any]:
    """Train quick with a seed, unless that is done, and evaluate it on the test images."""
    trained, _ = run(
        *("train", "--recipe", "quick", "--seed", str(seed), "--output", str(folder), "--resume"),
        *("--device", "cpu", "--threads", str(threads), "--format", "json"),
    )
    answer, evaluate_seconds = run("ensemble", "evaluate", str(folder), "--device", "cpu", "--format", "json")
    evaluation = json.loads(answer)
    return {
        "seed": seed,
        "threads": int(read_header(folder / "k3").trained_on["threads"]),
        "members": {member["name"]: member["accuracy"] for member in evaluation["members"]},
        "vote": evaluation["ensemble"]["accuracy"],
        "train_seconds": sum(epoch["seconds"] for epoch in json.loads(trained)["epochs"]),
        "evaluate_seconds": evaluate_seconds,
    }


def measure_startup(arguments: list[str], repeats: int = 7) -> float:
    """Return the median of whole processes, in seconds, after one that is not counted."""
    return statistics.median([run(*arguments)[1] for _ in range(repeats + 1)][1:])


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    model = platform.processor()
    flags = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        model, flags = facts.get("model name", model), facts.get("flags", "")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "bf16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags.split()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fmcli": run("--version")[0].split()[-1],
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables of the README."""
    seeds = result["seeds"]
    names = list(seeds[0]["members"])
    print("| seed |", " | ".join(names), "| vote | training | `ensemble evaluate` |")
    print("|---" * (len(names) + 4) + "|")
    for one in seeds:
        accuracies = " | ".join(f"{100 * one['members'][name]:.2f}" for name in names)
        print(
            f"| {one['seed']} | {accuracies} | {100 * one['vote']:.2f} "
            f"| {one['train_seconds']:.0f} s | {one['evaluate_seconds']:.1f} s |"
        )
    columns = [[one["members"][name] for one in seeds] for name in names] + [[one["vote"] for one in seeds]]
    means = " | ".join(f"{100 * statistics.mean(column):.2f}" for column in columns)
    train, evaluate = (statistics.median(one[key] for one in seeds) for key in ("train_seconds", "evaluate_seconds"))
    print(f"| mean (median of times) | {means} | {train:.0f} s | {evaluate:.1f} s |")
    best = statistics.mean(max(one["members"].values()) for one in seeds)
    print(f"\nThe best member of each seed has {100 * best:.2f} % on the mean.\n")
    for command, seconds in result["startup_seconds"].items():
        print(f"{command}: {seconds:.2f} s")
    print(result["machine"])


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "startup_seconds": {name: measure_startup(command) for name, command in STARTUP.items()},
        "seeds": [
            measure_seed(seed, arguments.runs / f"quick-seed-{seed}", arguments.threads)
            for seed in range(arguments.seeds)
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quick.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
