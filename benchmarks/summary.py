"""Compute medians, ratios and shares from the answers of peers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

KERAS = ("keras", "keras-bf16")
HIGHER_IS_BETTER = "images_per_second"
LOWER_IS_BETTER = ("peak_bytes", "seconds")


def medians(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median of each number in the answers. Answers of failed repeats have no numbers.

    Example:
        >>> medians([{"seconds": 1.0}, {"seconds": 4.0}, {"seconds": 2.0}, {"error": "killed"}])
        {'seconds': 2.0}
    """
    names = dict.fromkeys(
        name for answer in answers for name, value in answer.items() if isinstance(value, int | float)
    )
    return {name: statistics.median(answer[name] for answer in answers if name in answer) for name in names}


def ratios(of_peers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the ratio of fmcli's images per second to each peer's, and to the faster setting of Keras.

    If images per second were not measured, return ratios of memory; if memory was not measured, ratios of time.

    Args:
        of_peers: Medians of each peer.

    Example:
        >>> ratios({"fmcli": {"images_per_second": 30}, "keras": {"images_per_second": 10}})
        {'keras': 3.0, 'faster keras': 3.0}
    """
    for figure in (HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        values = {peer: found[figure] for peer, found in of_peers.items() if figure in found}
        if "fmcli" not in values:
            continue
        ours = values.pop("fmcli")
        of_keras = [values[peer] for peer in KERAS if peer in values]
        if of_keras and figure == HIGHER_IS_BETTER:
            values["faster keras"] = max(of_keras)
        return {peer: ours / theirs for peer, theirs in values.items()}
    return {}


def shares(line: Mapping[str, Any], median: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """Return the shares of the machine's bf16 matrix rate and memory bandwidth that training uses.

    Args:
        line: Entry with the operations and bytes per image.
        median: Medians with the images per second.
        limits: Result of `machine.limits`.
    """
    rate = median.get(HIGHER_IS_BETTER)
    if rate is None or not limits:
        return {}
    return {
        "bf16_rate": rate * line["operations_per_image"] / limits["bf16_operations_per_second"],
        "bandwidth": rate * line["bytes_per_image"] / limits["copied_bytes_per_second"],
    }


def seconds_to(curve: Sequence[Sequence[float]], accuracy: float) -> float | None:
    """Return the seconds of training until an accuracy was first reached, or None if it never was.

    Args:
        curve: Seconds of training and accuracy at the end of each epoch.
        accuracy: Threshold in [0, 1].

    Example:
        >>> seconds_to([[10.0, 0.88], [20.0, 0.91], [30.0, 0.9]], 0.9)
        20.0
    """
    return next((seconds for seconds, reached in curve if reached >= accuracy), None)


def schedule_seconds(rates: Sequence[float], *, n_images: int, epochs: int) -> float:
    """Return the seconds to train networks one at a time, given the images per second of each.

    Example:
        >>> schedule_seconds([100.0, 50.0], n_images=1000, epochs=2)
        60.0
    """
    return sum(epochs * n_images / rate for rate in rates)
