"""Train published systems in Keras, to see whether fmcli or chance explains a difference from a published accuracy.

    python -m benchmarks.reports mell-fc --seeds 8

Trains the network of each recipe with Keras's `fit` for several seeds, with the recipe's optimizer, split and epochs.
Adds the test accuracies, with hardware and versions, to a JSON file in benchmarks/results/. The recipes must divide
pixels by 255.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from benchmarks.machine import describe
from benchmarks.peers.keras_peer import build_network, build_optimizer
from benchmarks.works import INPUT_SHAPE, N_CLASSES
from fmcli.data import load_splits
from fmcli.hardware.cpu import count_cores
from fmcli.metrics.comparison import mean_interval
from fmcli.networks.tracing import trace_network
from fmcli.recipe import load_recipe

RESULT = Path(__file__).parent / "results" / "reports-in-keras.json"


def train(name: str, seed: int) -> float:
    """Train the single member of a recipe in Keras. Return its test accuracy."""
    recipe = load_recipe(name)
    (member,) = recipe.members
    splits = load_splits(recipe.data)
    keras.utils.set_random_seed(seed)
    model = build_network(trace_network(member.model, INPUT_SHAPE, N_CLASSES))
    model.compile(
        optimizer=build_optimizer(member.optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    arrays = {
        split: (images.images.transpose(0, 2, 3, 1).astype("float32") / 255, images.labels)
        for split, images in splits.present().items()
    }
    model.fit(*arrays["train"], batch_size=member.trainer.batch_size, epochs=member.trainer.epochs, verbose=0)
    return round(float(model.evaluate(*arrays["test"], batch_size=500, verbose=0)[1]), 6)  # Keras returns a float32


def summarize(accuracies: list[float]) -> dict[str, Any]:
    """Return the mean over seeds, its 95 % interval and the spread."""
    low, high = mean_interval(accuracies)
    return {
        "test_accuracy": accuracies,
        "mean": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies),
        "low": low,
        "high": high,
    }


def main() -> None:
    """Train, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--threads", type=int, default=count_cores())
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2, to compute the spread")
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    for name in arguments.recipes:
        accuracies = []
        for seed in range(arguments.seeds):
            accuracies.append(train(name, seed))
            print(f"{name}, seed {seed}: {100 * accuracies[-1]:.2f} %", flush=True)
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        RESULT.write_text(json.dumps(found | {name: summarize(accuracies) | {"machine": describe()}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
