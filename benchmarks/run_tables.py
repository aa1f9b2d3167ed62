"""Tables of the results of `benchmarks.run`."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.markdown import describe_source, duration, heading, row, spread, wrap
from benchmarks.summary import seconds_to

TITLES = {
    "fmcli": "fmcli",
    "keras": "Keras",
    "keras-bf16": "Keras, bf16",
    "torch": "PyTorch",
    "torch-bf16": "PyTorch, bf16",
}
COMPARED = {
    "faster keras": "× faster Keras",
    "keras": "× Keras",
    "keras-bf16": "× Keras, bf16",
    "torch": "× PyTorch",
    "torch-bf16": "× PyTorch, bf16",
}
LIMITS = {"bf16_rate": "of bf16 rate", "bandwidth": "of bandwidth"}
THRESHOLDS = {"cpu": (90, 92, 93, 94), "cuda": (94, 95, 96)}
Line = Mapping[str, Any]
Result = Mapping[str, Any]
Curve = Sequence[Sequence[float]]  # seconds of training and accuracy at the end of each epoch


def show(result: Result) -> None:
    """Print all tables."""
    print("\n".join(build(result)))


def build(result: Result) -> Iterator[str]:
    """Yield the lines of all tables that have results, then the source of the results."""
    for table in TABLES.values():
        if lines := list(table(result)):
            yield from (*lines, "")
    yield from describe(result)


def lines_of(result: Result, section: str, *, augment: bool | None = None) -> list[Line]:
    """Return the entries of a section; of training, those with or without augmentation."""
    return [line for line in result["results"] if line["section"] == section and line.get("augment") == augment]


def rates(result: Result, *, augment: bool) -> Iterator[str]:
    """Yield a table of images per second during training: one row per network, one column per peer."""
    lines = lines_of(result, "train", augment=augment)
    if peers := [peer for peer in TITLES if any(peer in line["peers"] for line in lines)]:
        yield from heading([training(augment), *map(TITLES.__getitem__, peers)])
        for line in lines:
            yield row([named(line), *(number(line["peers"].get(peer, {}).get("median", {})) for peer in peers)])
        yield from ("", *wrap(describe_repeats(lines)))


def ratios(result: Result, *, augment: bool) -> Iterator[str]:
    """Yield a table of the training speed of fmcli divided by the speed of each peer, and the range of each column."""
    lines = lines_of(result, "train", augment=augment)
    if compared := [key for key in COMPARED if any(key in line["ratios"] for line in lines)]:
        yield from heading([training(augment), *map(COMPARED.__getitem__, compared)])
        for line in lines:
            yield row([named(line), *(ratio(line, key) for key in compared)])
        columns = [[line["ratios"][key] for line in lines if key in line["ratios"]] for key in compared]
        yield row(["lowest to highest", *(f"{min(column):.1f} to {max(column):.1f}" for column in columns)])


def limits(result: Result) -> Iterator[str]:
    """Yield a table of the shares of the machine's limits that training uses, and the limits."""
    lines = lines_of(result, "train", augment=False)
    if limited := [key for key in LIMITS if any(key in _shares(line) for line in lines)]:
        yield from heading([training(False), *map(LIMITS.__getitem__, limited)])
        for line in lines:
            yield row([named(line), *(f"{100 * _shares(line)[key]:.0f} %" for key in limited)])
        highest = lines_of(result, "limits")[0]["peers"]["machine"]["median"]
        yield ""
        yield (
            f"Measured limits: {highest['bf16_operations_per_second'] / 1e12:.2f} Tflop/s in bf16, "
            f"{highest['fp32_operations_per_second'] / 1e12:.2f} in fp32; "
            f"{highest['copied_bytes_per_second'] / 1e9:.1f} GB/s copied."
        )


def _shares(line: Line) -> Mapping[str, float]:
    shares: Mapping[str, float] = line.get("shares", {}).get("fmcli", {})
    return shares


def augmentation(result: Result) -> Iterator[str]:
    """Yield a table of the time that rotation and translation add to the training of fmcli."""
    pairs = [
        (plain, augmented)
        for plain in lines_of(result, "train", augment=False)
        for augmented in lines_of(result, "train", augment=True)
        if plain["work"] == augmented["work"] and rates_of(plain) and rates_of(augmented)
    ]
    if pairs:
        yield from heading(["fmcli, images/s", "plain", "rotation and translation", "more time", "in single repeats"])
    for plain, augmented in pairs:
        before, after = rates_of(plain), rates_of(augmented)
        single = [one / other - 1 for one, other in zip(before, after, strict=True)]
        medians = statistics.median(before), statistics.median(after)
        cells = [f"{rate:,.0f}" for rate in medians] + [f"{100 * (medians[0] / medians[1] - 1):+.1f} %"]
        yield row([named(plain), *cells, f"{100 * min(single):+.0f} to {100 * max(single):+.0f} %"])


def by_peer(result: Result, *, section: str, figure: str, title: str, unit: str, scale: float = 1) -> Iterator[str]:
    """Yield one table per network with a row per peer: median, range, and the median of fmcli divided by the peer's."""
    for line in lines_of(result, section):
        found = {
            peer: [answer[figure] / scale for answer in entry["answers"] if figure in answer]
            for peer, entry in line["peers"].items()
        }
        found = {peer: values for peer, values in found.items() if values}
        if line["work"].startswith("fmcli") or not found:
            continue
        yield from heading([title.format(work=line["work"]), unit, "lowest to highest", "fmcli / peer"])
        for peer, values in found.items():
            low, middle, high = (shorten(value) for value in (min(values), statistics.median(values), max(values)))
            yield row([TITLES[peer], middle, f"{low} to {high}", f"{line['ratios'].get(peer, 1.0):.2f}"])


def commands(result: Result) -> Iterator[str]:
    """Yield a table of the time of short commands."""
    lines = [line for line in lines_of(result, "startup") if line["work"].startswith("fmcli")]
    if lines:
        yield from heading(["command", "seconds"])
    for line in lines:
        seconds = line["peers"]["fmcli"]["median"].get("seconds")
        yield row([f"`{line['work']}`", "–" if seconds is None else f"{seconds:.2f}"])


def schedule(result: Result) -> Iterator[str]:
    """Yield a table of the estimated time to train all members of kernel-vote completely."""
    if result["schedule_seconds"]:
        yield from heading(["all epochs of `kernel-vote`", "estimated time"])
        for peer, seconds in result["schedule_seconds"].items():
            yield row([TITLES[peer], duration(seconds)])


def times(result: Result) -> Iterator[str]:
    """Yield a table of the seconds until each test accuracy."""
    yield from accuracy(lines_of(result, "accuracy"), THRESHOLDS[result["options"]["device"]])


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
    accuracies, ends = [100 * curve[-1][1] for curve in curves], [curve[-1][0] for curve in curves]
    yield f"{spread(accuracies, 2)} % after {spread(ends, 1)} s"


def describe(result: Result) -> Iterator[str]:
    """Yield the source of the results: command, repeats, hardware and versions, then notes and failures."""
    load = f"{result['began'][:10]}, load before: {result['load_before']:.1f}"
    yield from describe_source(result, describe_options(result), load)
    yield from result["notes"]
    yield from failures(result)


def describe_options(result: Result) -> str:
    """Return the number of repeats or seeds, and of threads."""
    options = result["options"]
    only_accuracy = options["sections"] == ["accuracy"]
    repeats = f"seeds: {options['accuracy_repeats']}" if only_accuracy else f"medians of {options['repeats']} repeats"
    return f"{repeats}, threads: {options['threads']}"


def describe_repeats(lines: Sequence[Line]) -> str:
    """Return a sentence about the differences between the repeats of one measurement."""
    found = [rates_of(line, peer) for line in lines for peer in line["peers"]]
    differences = [100 * (max(values) / min(values) - 1) for values in found if len(values) > 1]
    if not differences:
        return "Measured once."
    counts = [sum(low < one <= high for one in differences) for low, high in ((-1, 5), (5, 20), (20, float("inf")))]
    return (
        f"The fastest repeat is at most 5 % faster than the slowest in {counts[0]} of these {len(differences)} "
        f"measurements, 5 to 20 % faster in {counts[1]}, and more than that in {counts[2]}. "
        f"The largest difference is {max(differences):.0f} %."
    )


def failures(result: Result) -> Iterator[str]:
    """Yield one line for each kind of failure."""
    errors = [
        f"{line['section']} {line['work']}, {peer}: {answer['error']}"
        for line in result["results"]
        for peer, entry in line["peers"].items()
        for answer in entry["answers"]
        if "error" in answer
    ]
    yield from (f"{error} ({errors.count(error)} times)" for error in dict.fromkeys(errors))


def rates_of(line: Line, peer: str = "fmcli") -> list[float]:
    """Return the images per second in each repeat of a peer."""
    answers = line["peers"].get(peer, {}).get("answers", [])
    return [answer["images_per_second"] for answer in answers if "images_per_second" in answer]


def training(augment: bool) -> str:
    """Return the heading of the first column of a table about training."""
    return "Training, augmented" if augment else "Training"


def named(line: Line) -> str:
    """Return the name of a row."""
    return f"`{line['work']}`, batch {line['batch_size']}" if "batch_size" in line else f"`{line['work']}`"


def ratio(line: Line, key: str) -> str:
    """Format the speed of fmcli divided by the speed of a peer."""
    return f"{line['ratios'][key]:.1f}" if key in line["ratios"] else "–"


def number(median: Mapping[str, float]) -> str:
    """Format images per second with thousands separators."""
    return f"{median['images_per_second']:,.0f}" if "images_per_second" in median else "–"


def shorten(value: float) -> str:
    """Format a number with two digits after the point if it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


TABLES: dict[str, Callable[[Result], Iterator[str]]] = {
    "training-ratios": partial(ratios, augment=False),
    "augmented-ratios": partial(ratios, augment=True),
    "training-rates": partial(rates, augment=False),
    "augmented-rates": partial(rates, augment=True),
    "machine-limits": limits,
    "augmentation-cost": augmentation,
    "prediction": partial(
        by_peer, section="predict", figure="images_per_second", title="Prediction, vote of `{work}`", unit="images/s"
    ),
    "memory": partial(
        by_peer, section="memory", figure="peak_bytes", title="An epoch of `{work}`", unit="peak MiB", scale=2**20
    ),
    "time-to-accuracy": times,
    "startup": partial(by_peer, section="startup", figure="seconds", title="One step of `{work}`", unit="seconds"),
    "commands": commands,
    "schedule": schedule,
}
