"""Print the README's tables from a result file: `python -m benchmarks.table benchmarks/results/cpu.json`."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.summary import seconds_to

TITLES = {
    "fmcli": "fmcli",
    "keras": "Keras",
    "keras-bf16": "Keras, bf16",
    "torch": "PyTorch",
    "torch-bf16": "PyTorch, bf16",
}
COMPARED = {"faster keras": "× faster Keras", "keras": "× Keras", "torch": "× PyTorch"}
LIMITS = {"bf16_rate": "of bf16 rate", "bandwidth": "of bandwidth"}
THRESHOLDS = {"cpu": (90, 92, 93, 94), "cuda": (94, 95, 96)}
Line = Mapping[str, Any]
Curve = Sequence[Sequence[float]]  # seconds of training and accuracy at the end of each epoch


def show(result: Mapping[str, Any]) -> None:
    """Print all tables."""
    print("\n".join(build(result)))


def build(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of all tables that have results."""
    sections: dict[str, list[Line]] = {}
    for line in result["results"]:
        sections.setdefault(line["section"], []).append(line)
    limits = sections["limits"][0]["peers"]["machine"]["median"] if "limits" in sections else {}
    trained = sections.get("train", [])
    plain = [line for line in trained if not line["augment"]]
    augmented = [line for line in trained if line["augment"]]
    yield from throughput("Training, images/s", plain)
    yield from throughput("Training with rotation and translation, images/s", augmented, without=plain)
    yield from throughput("Prediction, vote of three, images/s", sections.get("predict", []))
    yield from memory(sections.get("memory", []))
    yield from accuracy(sections.get("accuracy", []), THRESHOLDS[result["options"]["device"]])
    for peer, seconds in result["schedule_seconds"].items():
        yield f"kernel-vote, all epochs of all members, estimated, {TITLES[peer]}: {duration(seconds)}"
    yield from startup(sections.get("startup", []))
    yield from describe(result, limits)


def throughput(title: str, lines: Sequence[Line], without: Sequence[Line] = ()) -> Iterator[str]:
    """Yield a table of images per second with ratios, shares of the machine's limits, and fmcli's cost of augmentation.

    Args:
        title: Heading of the first column.
        lines: One entry per network.
        without: The same networks without augmentation, to compute its cost. Default: leave out this column.
    """
    if not lines:
        return
    peers = [peer for peer in TITLES if any(peer in line["peers"] for line in lines)]
    compared = [key for key in COMPARED if any(key in line["ratios"] for line in lines)]
    limited = [key for key in LIMITS if any(key in _shares(line) for line in lines)]
    costs = {line["work"]: rate_of(line) for line in without}
    heads = [title, *map(TITLES.get, peers), *map(COMPARED.get, compared), *map(LIMITS.get, limited)]
    yield from heading([*heads, *(["more time"] if costs else [])])
    for line in lines:
        cells = [named(line), *(number(line["peers"].get(peer, {}).get("median", {})) for peer in peers)]
        cells += [f"{line['ratios'][key]:.1f}" if key in line["ratios"] else "–" for key in compared]
        cells += [f"{100 * _shares(line)[key]:.0f} %" if key in _shares(line) else "–" for key in limited]
        ours, before = rate_of(line), costs.get(line["work"])
        cells += [f"{100 * (before / ours - 1):+.1f} %" if ours and before else "–"] if costs else []
        yield row(cells)
    yield ""


def _shares(line: Line) -> Mapping[str, float]:
    shares: Mapping[str, float] = line.get("shares", {}).get("fmcli", {})
    return shares


def memory(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a table of peak memory."""
    for line in lines:
        peaks = {peer: entry["median"].get("peak_bytes") for peer, entry in line["peers"].items()}
        known = {peer: peak for peer, peak in peaks.items() if peak is not None}
        if known:
            yield from heading([f"Peak memory, an epoch of `{line['work']}`", *(TITLES[peer] for peer in known)])
            yield row(["MiB, all processes together", *(f"{peak / 2**20:,.0f}" for peak in known.values())])
            yield row(["fmcli takes", *(f"× {line['ratios'].get(peer, 1.0):.2f}" for peer in known)])
            yield ""


def startup(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the time of each command, and a table of the time of a process that trains for one step."""
    for line in lines:
        seconds = {peer: entry["median"].get("seconds") for peer, entry in line["peers"].items()}
        cells = {peer: "–" if found is None else f"{found:.2f} s" for peer, found in seconds.items()}
        if line["work"].startswith("fmcli"):
            yield f"`{line['work']}`: {cells['fmcli']}"
            continue
        yield from heading([f"Whole process, one step of `{line['work']}`", *(TITLES[peer] for peer in cells)])
        yield row(["start to end", *cells.values()])
        yield row(["fmcli takes", *(f"× {line['ratios'].get(peer, 1.0):.2f}" for peer in cells)])
        yield ""


def accuracy(lines: Sequence[Line], thresholds: Sequence[int]) -> Iterator[str]:
    """Yield a table of the seconds until each test accuracy: one row per training run, then their mean."""
    if not lines:
        return
    yield from heading(["Seconds of training until", *(f"{percent} %" for percent in thresholds), "at the end"])
    for line in lines:
        for peer, entry in line["peers"].items():
            answers = [answer for answer in entry["answers"] if "error" not in answer]
            for answer in answers:
                yield from time_rows(f"`{line['work']}`", TITLES[peer], [answer], thresholds)
            if len(answers) > 1:
                yield from time_rows(f"`{line['work']}`, mean of {len(answers)}", TITLES[peer], answers, thresholds)
    yield ""


def time_rows(work: str, peer: str, answers: Sequence[Line], thresholds: Sequence[int]) -> Iterator[str]:
    """Yield a row for each member of a peer and one for the vote, with means over several training runs."""
    members: dict[str, list[Curve]] = {}
    for answer in answers:
        for member, curve in answer.get("members", {}).items():
            members.setdefault(member, []).append(curve)
    for member, curves in members.items():
        name = work if f"`{member}`" in work else f"{work}, {member}"
        yield row([f"{name}, {peer}", *time_cells(curves, thresholds)])
    if all("vote_accuracy" in answer for answer in answers):
        accuracy, training, whole = (
            [float(answer[key]) for answer in answers] for key in ("vote_accuracy", "train_seconds", "command_seconds")
        )
        end = f"{spread([100 * one for one in accuracy], 2)} % after {spread(training, 1)} s"
        yield row([f"{work}, vote", *[""] * len(thresholds), f"{end}; whole command {spread(whole, 1)} s"])


def time_cells(curves: Sequence[Curve], thresholds: Sequence[int]) -> Iterator[str]:
    """Yield the mean time until each accuracy, or `–` if a training run never reached it, then the final accuracy."""
    for percent in thresholds:
        seconds = [seconds_to(curve, percent / 100) for curve in curves]
        known = [one for one in seconds if one is not None]
        yield spread(known, 1) if len(known) == len(seconds) else "–"
    accuracies, times = [100 * curve[-1][1] for curve in curves], [curve[-1][0] for curve in curves]
    yield f"{spread(accuracies, 2)} % after {spread(times, 1)} s"


def spread(values: Sequence[float], digits: int) -> str:
    """Format a value, or the mean and standard deviation of several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def describe(result: Mapping[str, Any], limits: Line) -> Iterator[str]:
    """Yield hardware, versions and options of the run."""
    machine, options = result["machine"], result["options"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    bf16 = ", ".join(machine["cpu_bf16"]) or "no bf16 units"
    yield ""
    yield f"{machine['gpu'] or machine['cpu']} ({options['threads']} of {machine['cores']} cores, {bf16})"
    if limits:
        yield (
            f"measured limits: {limits['bf16_operations_per_second'] / 1e12:.2f} Tflop/s in bf16, "
            f"{limits['fp32_operations_per_second'] / 1e12:.2f} in fp32; "
            f"{limits['copied_bytes_per_second'] / 1e9:.1f} GB/s copied"
        )
    yield f"Python {machine['python']}, {versions}; commit {machine['commit']}"
    yield f"medians of {options['repeats']}; load before: {result['load_before']:.1f}; {result['began']}"
    yield from result["notes"]
    yield from failures(result)


def failures(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each kind of failure."""
    errors = [
        f"{line['section']} {line['work']}, {peer}: {answer['error']}"
        for line in result["results"]
        for peer, entry in line["peers"].items()
        for answer in entry["answers"]
        if "error" in answer
    ]
    yield from (f"{error} ({errors.count(error)} times)" for error in dict.fromkeys(errors))


def rate_of(line: Line) -> float | None:
    """Return the images per second of fmcli, or None if not measured."""
    rate: float | None = line["peers"].get("fmcli", {}).get("median", {}).get("images_per_second")
    return rate


def named(line: Line) -> str:
    """Return the name of a row."""
    return f"`{line['work']}`, batch {line['batch_size']}" if "batch_size" in line else f"`{line['work']}`"


def number(median: Mapping[str, float]) -> str:
    """Format images per second with thousands separators."""
    return f"{median['images_per_second']:,.0f}" if "images_per_second" in median else "–"


def duration(seconds: float) -> str:
    """Format a time in hours, minutes or seconds."""
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def heading(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [row(cells), "|---" * len(cells) + "|"]


def row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1]).read_text()))
