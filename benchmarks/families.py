"""Compare the families kernel-cnn and kernel-resnet at equal multiply-adds, by validation accuracy.

    python -m benchmarks.families

Trains the recipe benchmarks/families.toml once for each seed, one member at a time. If it is interrupted, run the same
command again to continue. Writes JSON with hardware and versions to benchmarks/results/, and prints a table.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import recipe_tables
from benchmarks.machine import describe
from benchmarks.markdown import describe_source
from benchmarks.seeds import RESULTS, run
from fmcli.metrics.comparison import mean_interval

RECIPE = Path(__file__).with_suffix(".toml")


def measure_seed(seed: int, folder: Path, threads: int) -> dict[str, Any]:
    """Train both members with a seed, unless they are already trained, and return their last validation results."""
    trained, _ = run(
        *("train", "--recipe", str(RECIPE), "--seed", str(seed), "--output", str(folder), "--resume"),
        *("--device", "cpu", "--jobs", "1", "--threads", str(threads), "--format", "json"),
    )
    epochs = json.loads(trained)["epochs"]
    last = {epoch["member"]: epoch for epoch in epochs}
    return {
        "seed": seed,
        "accuracy": {name: epoch["validation_accuracy"] for name, epoch in last.items()},
        "loss": {name: epoch["validation_loss"] for name, epoch in last.items()},
        "seconds": {name: sum(epoch["seconds"] for epoch in epochs if epoch["member"] == name) for name in last},
    }


def measure_families(seeds: int, runs: Path, threads: int) -> dict[str, Any]:
    """Return the results of all seeds, and the mean difference in accuracy with its paired 95 % interval."""
    results = [measure_seed(seed, runs / f"families-seed-{seed}", threads) for seed in range(seeds)]
    differences = [one["accuracy"]["resnet"] - one["accuracy"]["cnn"] for one in results]
    summary, _ = run("recipe", "show", str(RECIPE), "--summary", "--format", "json")
    return {
        "machine": describe(),
        "threads": threads,
        "multiply_adds": json.loads(summary)["multiply_adds"],
        "seeds": results,
        "difference": statistics.mean(differences),
        "interval": mean_interval(differences),
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    result = measure_families(arguments.seeds, arguments.runs, arguments.threads)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "families.json").write_text(json.dumps(result, indent=2) + "\n")
    print(*recipe_tables.families(result), *describe_source(result), sep="\n")


if __name__ == "__main__":
    main()
