"""Measure how folded batch normalisation and bfloat16 change the predictions of a trained run.

    python -m benchmarks.folding checkpoints/quick

Each member predicts the test images in three ways: as trained in fp32, folded in fp32, and folded in bfloat16. Writes
JSON with hardware and versions to benchmarks/results/, and prints a table.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from benchmarks import recipe_tables
from benchmarks.machine import describe
from fmcli.checkpoints.checkpoint import Checkpoint, load_checkpoint
from fmcli.checkpoints.layout import find_checkpoints
from fmcli.data import evaluation_loader, load_splits
from fmcli.ensemble.rules.majority import Majority
from fmcli.networks.inference import InferenceNetwork, predict_logits

RESULT = Path(__file__).parent / "results" / "folding.json"


def predict(member: Checkpoint) -> NDArray[np.float32]:
    """Return logits (3, n_images, n_classes) of the test images: as trained, folded, and folded in bfloat16."""
    spec = member.header.data
    images = load_splits(spec).test
    loader = evaluation_loader(images, torch.device("cpu"))
    networks = (member.model.eval(), InferenceNetwork(member.model), InferenceNetwork(member.model, bf16=True))
    normalization = member.header.normalization_of("test")
    found = [predict_logits(network, loader.batches(), normalization) for network in networks]
    logits: NDArray[np.float32] = torch.stack(found).numpy()
    return logits


def compare(logits: NDArray[np.float32]) -> Iterator[dict[str, float]]:
    """Yield the largest changes of a member's logits (3, n_images, n_classes) by folding in fp32, then in bfloat16."""
    probabilities, labels = softmax(logits.astype(np.float64), axis=2), logits.argmax(axis=2)
    for variant in (1, 2):
        yield {
            "logits": float(np.abs(logits[variant] - logits[0]).max()),
            "probabilities": float(np.abs(probabilities[variant] - probabilities[0]).max()),
            "labels": int((labels[variant] != labels[0]).sum()),
        }


def measure(members: Mapping[str, Checkpoint]) -> list[dict[str, Any]]:
    """Return the changes for each member, and the number of changed labels of their vote."""
    logits = {name: predict(member) for name, member in members.items()}
    lines: list[dict[str, Any]] = []
    for name, one in logits.items():
        folded, in_bf16 = compare(one)
        lines.append({"voter": name, "folded": folded, "folded, bf16": in_bf16})
    if len(members) > 1:
        votes = [Majority().combine(np.stack([one[variant] for one in logits.values()])).labels for variant in range(3)]
        folded, in_bf16 = ({"labels": int((votes[variant] != votes[0]).sum())} for variant in (1, 2))
        lines.append({"voter": "vote", "folded": folded, "folded, bf16": in_bf16})
    return lines


def main() -> None:
    """Predict, compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    members = [load_checkpoint(path, device=torch.device("cpu")) for path in find_checkpoints(arguments.run)]
    lines = measure({member.name: member for member in members})
    written = {
        "machine": describe(),
        "command": ["python", "-m", "benchmarks.folding", *sys.argv[1:]],
        "trained_by": sorted({member.header.versions["fmcli"] for member in members}),
        "results": lines,
    }
    arguments.output.write_text(json.dumps(written, indent=2) + "\n")
    print(*recipe_tables.folding(written), sep="\n")


if __name__ == "__main__":
    main()
