"""Measure fmcli and its peers, write JSON and print the tables.

    python -m benchmarks.run
    python -m benchmarks.run --works roy-1 mell-cnn --peers fmcli keras --repeats 3
    python -m benchmarks.run --device cuda --accuracy-recipes quick kernel-vote

The last command trains kernel-vote for all its epochs. The other commands estimate the time for this from the
throughput.
"""

import argparse
import json
import os
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe
from benchmarks.peers import Answer, Job
from benchmarks.plan import PEERS, STARTUP, Measurement, available_cores, choose_peers, interleave, parse, plan
from benchmarks.processes import FMCLI, Done, FailedError, run
from benchmarks.run_tables import show
from benchmarks.summary import medians, ratios, schedule_seconds, shares
from benchmarks.works import load_work, training_bytes, training_operations
from fmcli.recipe import load_recipe

ROOT = Path(__file__).parent.parent
N_VALIDATION = 5000  # validation images of quick and kernel-vote


def measure(options: argparse.Namespace, measurement: Measurement, peer: str, repeat: int, folder: Path) -> Answer:
    """Return the answer of a peer, or its error."""
    try:
        match measurement:
            case Measurement(section="startup", work=work):
                command = [*FMCLI, *STARTUP[work]] if work in STARTUP else None
                done = run(command, limit=options.limit) if command else start_peer(options, measurement, peer, folder)
                return {"seconds": done.seconds} if repeat else {}  # the first repeat fills the disk cache
            case Measurement(section="accuracy") if peer == "fmcli":
                return train_completely(options, measurement.work, repeat, folder / "trained-on")
            case _:
                return run_job(options, measurement, peer, folder)
    except FailedError as error:
        return {"error": str(error)}


def run_job(options: argparse.Namespace, measurement: Measurement, peer: str, folder: Path) -> Answer:
    """Run the job of a peer and return its answer."""
    done = start_peer(options, measurement, peer, folder)
    answer: Answer = json.loads(done.output.splitlines()[-1])
    return answer if done.peak_bytes is None else {**answer, "peak_bytes": done.peak_bytes}


def start_peer(options: argparse.Namespace, measurement: Measurement, peer: str, folder: Path) -> Done:
    """Run a peer in its own process."""
    is_complete = measurement.section == "accuracy"
    job = Job(
        task={"memory": "epoch", "startup": "first_step"}.get(measurement.section, measurement.section),
        images=str(folder / ("trained-on" if is_complete else "all")),
        work=measurement.work,
        augment=measurement.augment,
        bf16=PEERS[peer].bf16,
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
    )
    return run(
        [sys.executable, "-m", PEERS[peer].module, json.dumps(asdict(job))],
        environment=environment(options),
        limit=None if is_complete else options.limit,
        watch=measurement.section == "memory",
    )


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables of all peers: the same number of threads, and no GPU unless requested."""
    given = {
        "OMP_NUM_THREADS": str(options.threads),
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **given, **({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})}


def train_completely(options: argparse.Namespace, recipe: str, seed: int, images: Path) -> Answer:
    """Train a recipe with the installed command, then evaluate the vote.

    Training does not use the recipe's validation images. It validates on the test images instead, so that the history
    contains the test accuracy of each epoch. This accuracy decides nothing. `train_seconds` is the time of the training
    steps of all members. With `--at-once`, it is the time of the slowest member, because all members train in parallel.
    """
    members = {member.name: member.trainer for member in load_recipe(recipe).members}
    n_images = count_images(images)
    data = {"data.source": f"idx:{images}", "data.validation": "{ own = true }", "trainer.keep": "last"}
    settings = [word for key, value in data.items() for word in ("--set", f"{key}={value}")]
    where = ("--device", options.device, "--format", "json", "--quiet")
    with TemporaryDirectory() as folder:
        command = [*FMCLI, "train", "--recipe", recipe, *settings, "--seed", str(seed), "--output", folder, *where]
        command += ("--jobs", str(len(members))) if options.at_once else ("--threads", str(options.threads))
        trained = run(command, environment=environment(options))
        vote = run([*FMCLI, "ensemble", "evaluate", folder, *where], environment=environment(options))
    curves: dict[str, list[list[float]]] = {name: [] for name in members}
    for epoch in json.loads(trained.output)["epochs"]:
        trainer, curve = members[epoch["member"]], curves[epoch["member"]]
        n_seen = n_images // trainer.batch_size * trainer.batch_size if trainer.drop_last else n_images
        before = curve[-1][0] if curve else 0.0
        curve.append([before + n_seen / epoch["images_per_second"], epoch["validation_accuracy"]])
    return {
        "members": curves,
        "train_seconds": (max if options.at_once else sum)(curve[-1][0] for curve in curves.values()),
        "command_seconds": trained.seconds,
        "vote_accuracy": json.loads(vote.output)["ensemble"]["accuracy"],
    }


def write_images(folder: Path) -> None:
    """Write Fashion-MNIST as IDX files: `all` has all images, `trained-on` has no validation images of recipes."""
    from fmcli.data import load_source
    from fmcli.recipe import DataSpec

    source = load_source(DataSpec(source="fashion-mnist"))
    for name, first in (("all", 0), ("trained-on", N_VALIDATION)):
        target = folder / name
        target.mkdir()
        train, test = source.train.subset(slice(first, None)), source.test
        for split, images in (("train", train), ("t10k", test), ("validation", test)):
            write_idx(target / f"{split}-images-idx3-ubyte", images.images[:, 0])
            write_idx(target / f"{split}-labels-idx1-ubyte", images.labels.astype(np.uint8))


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an IDX file of uint8 values."""
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def count_images(folder: Path) -> int:
    """Return the number of training images in a folder of IDX files."""
    return (folder / "train-labels-idx1-ubyte").stat().st_size - 8


def facts(measurement: Measurement) -> dict[str, Any]:
    """Return the facts about a measurement that are known before it runs."""
    known: dict[str, Any] = {"section": measurement.section, "work": measurement.work}
    if measurement.section != "train":
        return known
    work = load_work(measurement.work)
    return known | {
        "augment": measurement.augment,
        "batch_size": work.batch_size,
        "parameters": sum(trace.parameters for trace in work.traces),
        "operations_per_image": training_operations(work.traces),
        "bytes_per_image": training_bytes(work.traces),
    }


def collect(answers: Mapping[Measurement, Mapping[str, Sequence[Answer]]]) -> list[dict[str, Any]]:
    """Return one entry per measurement: facts, all answers, medians, ratios and shares of the machine's limits."""
    lines = []
    limits: dict[str, float] = {}
    for measurement, of_peers in answers.items():
        found = {peer: {"median": medians(given), "answers": given} for peer, given in of_peers.items()}
        if measurement.section == "limits":
            limits = found["machine"]["median"]
        line = facts(measurement)
        line["ratios"] = ratios({peer: entry["median"] for peer, entry in found.items()})
        if measurement.section == "train":
            line["shares"] = {peer: shares(line, entry["median"], limits) for peer, entry in found.items()}
        lines.append(line | {"peers": found})
    return lines


def estimate_schedule(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Estimate the seconds in which each peer trains kernel-vote completely, from its throughput with augmentation."""
    recipe = load_recipe("kernel-vote")
    names = [member.name for member in recipe.members]
    rates: dict[str, list[float]] = {}
    for line in lines:
        if line["section"] == "train" and line["augment"] and line["work"] in names:
            for peer, entry in line["peers"].items():
                rates.setdefault(peer, []).append(entry["median"].get("images_per_second", 0.0))
    epochs = recipe.members[0].trainer.epochs
    return {
        peer: schedule_seconds(found, n_images=60000 - N_VALIDATION, epochs=epochs)
        for peer, found in rates.items()
        if len(found) == len(names) and all(found)
    }


def main() -> None:
    """Measure, write the result after each answer, and print the tables."""
    options = parse(sys.argv[1:], description=__doc__)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cores()[: options.threads])
    peers, notes = choose_peers(options.peers)
    for note in notes:
        print(note, file=sys.stderr)
    if not peers:
        raise SystemExit("no peer is installed; make bench installs them")
    result: dict[str, Any] = {
        "machine": describe(),
        "command": ["python", "-m", "benchmarks.run", *sys.argv[1:]],
        "options": {key: value for key, value in vars(options).items() if key != "output"},
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "load_before": os.getloadavg()[0],
        "notes": notes,
    }
    steps = list(interleave(plan(options, peers)))
    answers: dict[Measurement, dict[str, list[Answer]]] = {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        write_images(Path(folder))
        for number, (repeat, measurement, peer) in enumerate(steps, start=1):
            answer = measure(options, measurement, peer, repeat, Path(folder))
            answers.setdefault(measurement, {name: [] for name in measurement.peers})[peer].append(answer)
            lines = collect(answers)
            content = result | {"results": lines, "schedule_seconds": estimate_schedule(lines)}
            options.output.write_text(json.dumps(content, indent=1) + "\n")
            suffix = " with rotation and translation" if measurement.augment else ""
            shown = {key: value for key, value in answer.items() if key != "members"}
            print(
                f"{number}/{len(steps)} {measurement.section} {measurement.work}{suffix}, {peer}: {shown}",
                file=sys.stderr,
            )
    show(json.loads(options.output.read_text()))


if __name__ == "__main__":
    main()
