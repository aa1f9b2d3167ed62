"""What is to be measured, of whom, and in what order."""

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
MEMORY_REPEATS = 3  # it hardly varies, and an epoch takes long


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer.

    Args:
        module: Which does its jobs.
        package: What must be installed.
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
    """One line of a table: what is measured, and of whom.

    Args:
        section: One of `SECTIONS`.
        work: A network; a recipe, for accuracy; a command, for start-up, or a network of which one step is learnt.
        peers: Who takes part.
        augment: With rotation and translation.
        repeats: How often.
    """

    section: str
    work: str
    peers: tuple[str, ...]
    augment: bool = False
    repeats: int = 1


def parse(arguments: Sequence[str], *, description: str | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, help="by default all; on a GPU, not those of the CPU"
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, help="networks to train")
    parser.add_argument("--peers", nargs="+", choices=[name for name in PEERS if name != "machine"])
    parser.add_argument("--augment", nargs="+", choices=("without", "with"), default=("without", "with"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="to measure each throughput for, at least")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a process may take, but for accuracy")
    parser.add_argument("--threads", type=int, default=len(available_cores()), help="and cores, for all alike")
    parser.add_argument(
        "--accuracy-recipes", nargs="+", default=["quick"], help="to train whole; kernel-vote takes long"
    )
    parser.add_argument("--accuracy-repeats", type=int, default=1, help="each with a seed of its own")
    parser.add_argument("--at-once", action="store_true", help="train all members of those recipes at once")
    parser.add_argument("--accuracy-peers", action="store_true", help="the peers' time to accuracy on quick, too")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/DEVICE.json")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.sections = options.sections or (("limits", "train", "accuracy") if on_gpu else SECTIONS)
    options.works = options.works or (GPU_WORKS if on_gpu else tuple(WORKS))
    options.peers = options.peers or (("fmcli", "torch", "torch-bf16") if on_gpu else tuple(PEERS)[:-1])
    options.output = options.output or RESULTS / f"{options.device}.json"
    return options


def available_cores() -> list[int]:
    """Return the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))


def plan(options: argparse.Namespace, peers: tuple[str, ...]) -> list[Measurement]:
    """Return what is to be measured."""
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
    """Return what is trained whole: fmcli's recipes, and on request the networks of quick by the peers."""
    others = tuple(peer for peer in peers if peer != "fmcli")
    works = [work for work, (recipe, _) in WORKS.items() if recipe == "quick" and options.accuracy_peers and others]
    repeats = options.accuracy_repeats
    recipes = options.accuracy_recipes if "fmcli" in peers else ()
    ours = [Measurement("accuracy", name, ("fmcli",), repeats=repeats) for name in recipes]
    return [*ours, *(Measurement("accuracy", work, others, repeats=repeats) for work in works)]


def interleave(measurements: Sequence[Measurement]) -> Iterator[tuple[int, Measurement, str]]:
    """Yield each repeat of each measurement for each peer: all peers in turn, each time another one first."""
    for repeat in range(max((one.repeats for one in measurements), default=0)):
        for measurement in measurements:
            if repeat < measurement.repeats:
                first = repeat % len(measurement.peers)
                for peer in measurement.peers[first:] + measurement.peers[:first]:
                    yield repeat, measurement, peer


def choose_peers(wanted: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the peers that are installed, and a note for each that is not."""
    missing = [name for name in wanted if importlib.util.find_spec(PEERS[name].package) is None]
    notes = [f"{name} is left out: {PEERS[name].package} is not installed" for name in missing]
    return tuple(name for name in wanted if name not in missing), notes
