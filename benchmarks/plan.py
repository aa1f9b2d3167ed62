"""Plan the measurements: options, peers and order."""

import argparse
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"
STARTUP = {
    "fmcli --help": ["--help"],
    "fmcli train --help": ["train", "--help"],
    "fmcli ensemble evaluate --help": ["ensemble", "evaluate", "--help"],
    "fmcli recipe validate quick": ["recipe", "validate", "quick"],
}
SECTIONS = ("limits", "startup", "train", "predict", "memory", "accuracy")
GPU_WORKS = ("m3", "m5", "m7", "quick-k3", "quick-k5", "quick-k7")
MEMORY_WORK = STARTUP_WORK = "quick-k3"
MEMORY_REPEATS = 3  # memory hardly varies between repeats, and an epoch takes a long time


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to compare.

    Args:
        module: Module that runs its jobs.
        package: Package that must be installed.
        bf16: Multiply in bfloat16.
    """

    module: str
    package: str
    bf16: bool = False


PEERS = {
    "fmcli": Peer("benchmarks.peers.fmcli_peer", "fmcli"),
    "keras": Peer("benchmarks.peers.keras_peer", "tensorflow"),
    "keras-bf16": Peer("benchmarks.peers.keras_peer", "tensorflow", bf16=True),
    "torch": Peer("benchmarks.peers.torch_peer", "torchvision"),
    "torch-bf16": Peer("benchmarks.peers.torch_peer", "torchvision", bf16=True),
    "machine": Peer("benchmarks.machine", "torch"),
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of a table.

    Args:
        section: One of `SECTIONS`.
        work: Name of a network. For accuracy, a recipe. For start-up, a command, or a network to train for one step.
        peers: Peers to measure.
        augment: Augment with rotation and translation.
        repeats: Number of repeats per peer.
    """

    section: str
    work: str
    peers: tuple[str, ...]
    augment: bool = False
    repeats: int = 1


def parse(arguments: Sequence[str], *, description: str | None = None) -> argparse.Namespace:
    """Parse the command line and fill in defaults that depend on the device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, help="default: all; on a GPU, limits, train and accuracy"
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, help="networks to train")
    parser.add_argument("--peers", nargs="+", choices=[name for name in PEERS if name != "machine"])
    parser.add_argument("--augment", nargs="+", choices=("without", "with"), default=("without", "with"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="minimum time of each throughput measurement")
    parser.add_argument(
        "--limit", type=float, default=600.0, help="time limit of each process in seconds; not for accuracy"
    )
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="threads and cores of each peer")
    parser.add_argument(
        "--accuracy-recipes", nargs="+", default=["quick"], help="recipes to train completely; kernel-vote takes hours"
    )
    parser.add_argument("--accuracy-repeats", type=int, default=1, help="number of seeds")
    parser.add_argument("--at-once", action="store_true", help="train all members of these recipes in parallel")
    parser.add_argument(
        "--accuracy-peers", action="store_true", help="also measure the time to accuracy of the peers on quick"
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DEVICE.json")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.sections = options.sections or (("limits", "train", "accuracy") if on_gpu else SECTIONS)
    options.works = options.works or (GPU_WORKS if on_gpu else tuple(WORKS))
    options.peers = options.peers or (("fmcli", "torch", "torch-bf16") if on_gpu else tuple(PEERS)[:-1])
    options.output = options.output or RESULTS / f"{options.device}.json"
    return options


def available_cores() -> list[int]:
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))


def plan(options: argparse.Namespace, peers: tuple[str, ...]) -> list[Measurement]:
    """Return the measurements."""
    repeats = options.repeats
    planned: list[Measurement] = []
    for section in options.sections:
        match section:
            case "limits":
                planned.append(Measurement(section, "machine", ("machine",), repeats=repeats))
            case "startup" if "fmcli" in peers:
                planned += [Measurement(section, command, ("fmcli",), repeats=repeats + 1) for command in STARTUP]
                planned.append(Measurement(section, STARTUP_WORK, peers, repeats=repeats + 1))
            case "train":
                planned += [
                    Measurement(section, work, peers, augment=augment == "with", repeats=repeats)
                    for work in options.works
                    for augment in options.augment
                ]
            case "predict":
                planned.append(Measurement(section, "quick", peers, repeats=repeats))
            case "memory":
                planned.append(Measurement(section, MEMORY_WORK, peers, repeats=min(repeats, MEMORY_REPEATS)))
            case "accuracy":
                planned += plan_accuracy(options, peers)
    return planned


def plan_accuracy(options: argparse.Namespace, peers: tuple[str, ...]) -> list[Measurement]:
    """Return the measurements of time to accuracy: recipes with fmcli and, on request, networks of quick with peers."""
    other_peers = tuple(peer for peer in peers if peer != "fmcli")
    works = [
        work for work, (recipe, _) in WORKS.items() if recipe == "quick" and options.accuracy_peers and other_peers
    ]
    repeats = options.accuracy_repeats
    recipes = options.accuracy_recipes if "fmcli" in peers else ()
    ours = [Measurement("accuracy", name, ("fmcli",), repeats=repeats) for name in recipes]
    return [*ours, *(Measurement("accuracy", work, other_peers, repeats=repeats) for work in works)]


def interleave(measurements: Sequence[Measurement]) -> Iterator[tuple[int, Measurement, str]]:
    """Yield each repeat of each measurement for each peer. A different peer goes first in each repeat."""
    for repeat in range(max((one.repeats for one in measurements), default=0)):
        for measurement in measurements:
            if repeat < measurement.repeats:
                first = repeat % len(measurement.peers)
                for peer in measurement.peers[first:] + measurement.peers[:first]:
                    yield repeat, measurement, peer


def choose_peers(wanted: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the installed peers, and a note for each missing peer."""
    missing = [name for name in wanted if importlib.util.find_spec(PEERS[name].package) is None]
    notes = [f"{name} is skipped: {PEERS[name].package} is not installed" for name in missing]
    return tuple(name for name in wanted if name not in missing), notes
