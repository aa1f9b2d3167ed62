"""Measure the accuracy of the members and the vote of a recipe for several seeds, and the time of the commands.

    python -m benchmarks.seeds quick --seeds 3

Runs the installed `fmcli` as a user does. If it is interrupted, run the same command again to continue. Writes JSON
with hardware and versions to benchmarks/results/, and prints a table.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import recipe_tables
from benchmarks.machine import describe
from benchmarks.markdown import describe_source
from benchmarks.processes import FMCLI
from fmcli.checkpoints.checkpoint import read_header
from fmcli.hardware.cpu import count_cores

RESULTS = Path(__file__).parent / "results"


def run(*arguments: str) -> tuple[str, float]:
    """Return the output of fmcli and the seconds of the whole process."""
    started = time.perf_counter()
    done = subprocess.run([*FMCLI, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout, time.perf_counter() - started


def measure_seed(recipe: str, seed: int, folder: Path, threads: int) -> dict[str, Any]:
    """Train a recipe with a seed unless it is already trained, and evaluate it on the test images."""
    trained, _ = run(
        *("train", "--recipe", recipe, "--seed", str(seed), "--output", str(folder), "--resume"),
        *("--device", "cpu", "--threads", str(threads), "--format", "json"),
    )
    answer, evaluate_seconds = run("ensemble", "evaluate", str(folder), "--device", "cpu", "--format", "json")
    evaluation = json.loads(answer)
    return {
        "seed": seed,
        "threads": int(read_header(folder / evaluation["members"][0]["name"]).trained_on["threads"]),
        "members": {member["name"]: member["accuracy"] for member in evaluation["members"]},
        "vote": evaluation["ensemble"]["accuracy"],
        "train_seconds": sum(epoch["seconds"] for epoch in json.loads(trained)["epochs"]),
        "evaluate_seconds": evaluate_seconds,
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"))
    parser.add_argument("--threads", type=int, default=count_cores())
    arguments = parser.parse_args()
    recipe = arguments.recipe
    result = {
        "machine": describe(),
        "seeds": [
            measure_seed(recipe, seed, arguments.runs / f"{recipe}-seed-{seed}", arguments.threads)
            for seed in range(arguments.seeds)
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{recipe}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(*recipe_tables.seeds(result), *describe_source(result), sep="\n")


if __name__ == "__main__":
    main()
