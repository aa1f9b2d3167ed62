"""Tables of the accuracy of recipes, and of time and memory for many images or members."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import heading, percent, row, spread

Result = Mapping[str, Any]


def seeds(result: Result) -> Iterator[str]:
    """Yield a table of the accuracy of members and vote for each seed: results of `benchmarks.seeds`."""
    lines = result["seeds"]
    names = list(lines[0]["members"])
    gains = [one["vote"] - max(one["members"].values()) for one in lines]
    yield from heading(["seed", *names, "vote", "over the best member", "training", "`ensemble evaluate`"])
    for one, gain in zip(lines, gains, strict=True):
        accuracies = [percent(one["members"][name]) for name in names]
        times = f"{one['train_seconds']:.0f} s", f"{one['evaluate_seconds']:.1f} s"
        yield row([str(one["seed"]), *accuracies, percent(one["vote"]), percent(gain, signed=True), *times])
    if len(lines) > 1:
        columns = [[one["members"][name] for one in lines] for name in names] + [[one["vote"] for one in lines]]
        train, evaluate = (
            statistics.median(one[key] for one in lines) for key in ("train_seconds", "evaluate_seconds")
        )
        cells = [
            *(percent(statistics.mean(column)) for column in columns),
            percent(statistics.mean(gains), signed=True),
        ]
        yield row(["mean (median of times)", *cells, f"{train:.0f} s", f"{evaluate:.1f} s"])


def families(result: Result) -> Iterator[str]:
    """Yield a table with a row for each family of networks, and the paired difference: see `benchmarks.families`."""
    lines = result["seeds"]
    yield from heading(["member", "multiply-adds", "accuracy of each seed", "mean ± spread", "loss", "seconds"])
    for name, operations in result["multiply_adds"].items():
        accuracies = [one["accuracy"][name] for one in lines]
        loss = statistics.mean(one["loss"][name] for one in lines)
        seconds = statistics.median(one["seconds"][name] for one in lines)
        cells = [", ".join(map(percent, accuracies)), spread([100 * accuracy for accuracy in accuracies], 2)]
        yield row([f"`kernel-{name}`", f"{operations / 1e6:.1f} M", *cells, f"{loss:.4f}", f"{seconds:.0f}"])
    low, high = (percent(end, signed=True) for end in result["interval"])
    difference = (
        f"Difference: {percent(result['difference'], signed=True)} points, paired 95 % interval {low} to {high}"
    )
    yield from ("", f"{difference}.")


def precision(*results: Result) -> Iterator[str]:
    """Yield a table of the accuracy of fast and plain training: results of `benchmarks.precision`."""
    from fmcli.metrics.comparison import mean_interval  # importing SciPy takes longer than all other tables

    yield from heading(
        ["recipe, epochs", "member", "as fmcli does", "as written, in fp32", "difference", "95 % interval"]
    )
    lines = [line for result in results for line in result["results"]]
    for recipe, epochs in dict.fromkeys((one["recipe"], one["epochs"]) for one in lines):
        ways = [
            [one["accuracy"] for one in lines if (one["recipe"], one["epochs"], one["way"]) == (recipe, epochs, way)]
            for way in ("fast", "as-written")
        ]
        for name in ways[0][0]:
            fast, written = ([100 * accuracies[name] for accuracies in way] for way in ways)
            differences = [one - other for one, other in zip(fast, written, strict=True)]
            low, high = mean_interval(differences)
            cells = [spread(fast, 2), spread(written, 2), f"{statistics.mean(differences):+.2f}"]
            yield row([f"`{recipe}`, {epochs}", name, *cells, f"{low:+.2f} to {high:+.2f}"])


def folding(result: Result) -> Iterator[str]:
    """Yield a table of the effect of folded weights and bfloat16 on predictions: results of `benchmarks.folding`."""
    yield from heading(
        ["", "folded: logits differ by", "changed labels", "folded, bf16: probabilities differ by", "changed labels"]
    )
    for line in result["results"]:
        folded, in_bf16 = line["folded"], line["folded, bf16"]
        far = [f"{folded['logits']:.1e}", f"{in_bf16['probabilities']:.3f}"] if "logits" in folded else ["", ""]
        yield row([line["voter"], far[0], str(folded["labels"]), far[1], str(in_bf16["labels"])])


def scale(result: Result) -> Iterator[str]:
    """Yield a table of time and memory by number of images and members: results of `benchmarks.scale`."""
    yield from heading(["images", "members", "seconds", "images/s while training", "own memory", "mapped"])
    for line in [*result["images"], *result["members"][1:]]:
        memory = [f"{line[f'{kind}_gib']:.2f} GiB" for kind in ("own", "mapped")]
        counts = f"{line['images']:,}", str(line["members"])
        yield row([*counts, f"{line['seconds']:.1f}", f"{line['images_per_second']:,}", *memory])


def thousand(result: Result) -> Iterator[str]:
    """Yield a table of time and memory to combine and select many members: results of `benchmarks.thousand`."""
    yield from heading(["command", "seconds", "peak memory"])
    members = f"{result['members']:,} members"
    names = {
        "combine": f"`ensemble evaluate` with {members}",
        "select 50": f"`ensemble select --size 50` from {members}",
    }
    for key, name in names.items():
        yield row([name, f"{result[key]['seconds']:.1f}", f"{result[key]['peak_gib']:.2f} GiB"])
