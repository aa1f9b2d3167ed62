"""Measure how bfloat16, reordered layers, our own kernels and folded weights change the accuracy.

    python -m benchmarks.precision roy-1 quick:2 --seeds 5

Trains each recipe (`quick:2` for two epochs) over several seeds in two ways, with the same initial weights, order of
images and augmentation. The first way is the default of fmcli. The second way is the recipe as written: in fp32, with
the layers in the recipe's order, without our own kernels, and tested without folded batch normalisation. If it is
interrupted, run the same command again to continue. Writes JSON with hardware and versions to benchmarks/results/, and
prints a table.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import recipe_tables
from benchmarks.machine import describe
from fmcli.checkpoints.checkpoint import load_checkpoint, read_header
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.data import Splits, evaluation_loader, load_splits
from fmcli.ensemble.rules.majority import Majority
from fmcli.hardware.cpu import count_cores
from fmcli.members.network import inference_network
from fmcli.networks.inference import predict_logits
from fmcli.recipe import Recipe, load_recipe
from fmcli.training import train_member

RESULTS = Path(__file__).parent / "results"
WAYS = {"fast": (), "as-written": ("trainer.precision=fp32",)}
CPU = torch.device("cpu")


@contextmanager
def as_written() -> Iterator[None]:
    """Build networks in the recipe's order, without our own kernels."""
    with (
        patch("fmcli.networks.build._pool_first", list),
        patch("fmcli.networks.cpu.loading.load_kernels", lambda *_: None),
    ):
        yield


def train_and_predict(recipe: Recipe, member: str, splits: Splits, folder: Path, way: str) -> NDArray[np.float32]:
    """Train a member unless it is already trained. Return its logits (n_images, n_classes) of the test images."""
    train_member(recipe, member, splits, folder, device=CPU, resume=True)
    trained = load_checkpoint(folder / MODEL_FILE, device=CPU)
    network = inference_network(trained) if way == "fast" else trained.model
    images = evaluation_loader(splits.test, CPU).batches()
    logits: NDArray[np.float32] = predict_logits(network, images, trained.header.normalization_of("test")).numpy()
    return logits


def measure(name: str, epochs: str, seed: int, way: str, folder: Path) -> dict[str, Any]:
    """Return the test accuracy of each member and, if there are several, of their majority vote."""
    recipe = load_recipe(name, [f"trainer.seed={seed}", *WAYS[way], *([f"trainer.epochs={epochs}"] if epochs else [])])
    splits = load_splits(recipe.data)
    names = [member.name for member in recipe.members]
    with as_written() if way == "as-written" else nullcontext():
        logits = np.stack([train_and_predict(recipe, member, splits, folder / member, way) for member in names])
    labels = dict(zip(names, logits.argmax(axis=2), strict=True))
    if len(names) > 1:
        labels["vote"] = Majority().combine(logits).labels
    header = read_header(folder / names[0])
    return {
        "recipe": name,
        "epochs": recipe.members[0].trainer.epochs,
        "seed": seed,
        "way": way,
        "trained_on": header.trained_on | header.versions,
        "accuracy": {voter: float((chosen == splits.test.labels).mean()) for voter, chosen in labels.items()},
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE[:EPOCHS]")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints/precision"))
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2, to compute the spread")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    results = []
    for seed in range(arguments.seeds):
        for given in dict.fromkeys(arguments.recipes):
            name, _, epochs = given.partition(":")
            for way in WAYS:
                folder = arguments.runs / f"{Path(name).stem}-{epochs or 'all'}-seed-{seed}-{way}"
                results.append(measure(name, epochs, seed, way, folder))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    written = {
        "machine": describe(),
        "command": ["python", "-m", "benchmarks.precision", *sys.argv[1:]],
        "results": results,
    }
    arguments.output.write_text(json.dumps(written, indent=2) + "\n")
    print(*recipe_tables.precision(written), sep="\n")


if __name__ == "__main__":
    main()
