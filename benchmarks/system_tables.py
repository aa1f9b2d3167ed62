"""Tables of published systems: accuracy, recalls, Keras, the kernel-size claim and the search."""

import statistics
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.markdown import duration, heading, percent, row

RECIPES = Path(__file__).parent.parent / "recipes"
DID_NOT_LEARN = 0.6  # mean validation accuracy of two runs; if one of them stays at chance, it is about 0.5
Result = Mapping[str, Any]


def systems(result: Result) -> Iterator[str]:
    """Yield a table of published and measured accuracy: output of `fmcli reproduce --format json`."""
    heads = ["recipe", "published", "measured", "95 % interval", "difference", "epochs", "time per run"]
    yield from heading(heads)
    for one in result["systems"]:
        name = f"`{one['system']}`" + (" (validation)" if one["split"] == "validation" else "")
        measured = f"{percent(one['mean'])} ± {percent(one['spread'])}"
        interval = f"{percent(one['low'])} to {percent(one['high'])}"
        cells = [percent(one["published"]), measured, interval, percent(one["difference"], signed=True)]
        yield row([name, *cells, f"{one['epochs']:.0f}", duration(one["seconds"])])
    runs = [training for one in result["systems"] for training in one["trainings"]]
    trained = {f"Python {run['trained_on']['python']}, torch {run['trained_on']['torch']}" for run in runs}
    seeds = max(one["seeds"] for one in result["systems"])
    yield ""
    yield (
        f"{seeds} seeds per system, one thread per run, {', '.join(sorted(trained))}. "
        f"All {len(runs)} runs: {duration(sum(run['seconds'] for run in runs))}."
    )


def recalls(result: Result) -> Iterator[str]:
    """Yield a table of the published and measured recall of each class."""
    compared = [one for one in result["systems"] if any(recall["published"] for recall in one["test_recall"].values())]
    yield from heading(["recall, published / measured", *(f"`{one['system']}`" for one in compared)])
    for name in compared[0]["test_recall"]:
        found = [one["test_recall"][name] for one in compared]
        yield row([name, *(f"{_known(recall['published'])} / {percent(recall['mean'])}" for recall in found)])


def _known(fraction: float | None) -> str:
    return "–" if fraction is None else percent(fraction)


def keras(in_keras: Result, reproduced: Result) -> Iterator[str]:
    """Yield a table of the systems that were also trained in Keras: results of `benchmarks.reports`."""
    yield from heading(["recipe", "published", "program", "seeds", "measured", "95 % interval"])
    ours = {one["system"]: one for one in reproduced["systems"]}
    for name, theirs in in_keras.items():
        counts = {"Keras": len(theirs["test_accuracy"]), "fmcli": ours[name]["seeds"]}
        for program, one in (("Keras", theirs), ("fmcli", ours[name])):
            measured = f"{percent(one['mean'])} ± {percent(one['spread'])}"
            interval = f"{percent(one['low'])} to {percent(one['high'])}"
            yield row(
                [f"`{name}`", percent(ours[name]["published"]), program, str(counts[program]), measured, interval]
            )


def one_epoch(trained: Result, for_clothes: Result) -> Iterator[str]:
    """Yield a table of the systems with kernel votes after one epoch."""
    yield from heading(["recipe", "epochs", "accuracy of the members", "vote"])
    members = {one["system"]: one["trainings"][0]["members"] for one in trained["systems"]}
    votes = {one["system"]: one["mean"] for one in trained["systems"]}
    members["kernel-vote-fashion"] = {one["name"]: one["accuracy"] for one in for_clothes["members"]}
    votes["kernel-vote-fashion"] = for_clothes["ensemble"]["accuracy"]
    for name, accuracies in members.items():
        epochs = tomllib.loads((RECIPES / f"{name}.toml").read_text("utf-8"))["trainer"]["epochs"]
        shown = ", ".join(f"{member} {percent(accuracy)}" for member, accuracy in accuracies.items())
        yield row([f"`{name}`", f"1 of {epochs}", shown, percent(votes[name])])


def kernel_claim(result: Result) -> Iterator[str]:
    """Yield a table of ensembles with equal and mixed kernel sizes: output of `fmcli ensemble compare --draws`."""
    heads = ["ensemble", "drawn", "accuracy ± draws", "single member", "gain of mixed", "95 % interval", "adjusted p"]
    yield from heading(heads)
    for one in result["compositions"]:
        sizes = one["composition"].split("+")
        cells = [str(one["ensembles"]), f"{percent(one['accuracy'])} ± {percent(one['spread'])}"]
        if one["mixed_gains"] is None:
            yield row([one["composition"], *cells, *[""] * 4])
            continue
        interval = f"{percent(one['gain_low'], signed=True)} to {percent(one['gain_high'], signed=True)}"
        gain = percent(one["mixed_gains"], signed=True)
        cells += [percent(result["alone"][sizes[0]]), gain, interval, f"{one['adjusted_p_value']:.2g}"]
        yield row([one["composition"], *cells])


def search(result: Result) -> Iterator[str]:
    """Yield a table of the best trials, next to the values before tuning and the winner of the report."""
    published = tomllib.loads((RECIPES / "ams-tuned.toml").read_text("utf-8"))
    best = result["best"]
    yield from heading(["key", "untuned", "winner of the report", *(f"trial {one['number']}" for one in best)])
    for key in result["untuned"]:
        values = [result["untuned"][key], _look_up(published, key), *(one["values"][key] for one in best)]
        yield row([f"`{key}`", *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)])
    scores = percent(published["reference"]["validation_accuracy"]), *(percent(one["score"]) for one in best)
    yield row(["validation accuracy", "", *scores])
    failed = [one for one in result["trials"] if one["score"] < DID_NOT_LEARN]
    with_sigmoid = sum("sigmoid" in one["values"].values() for one in failed)
    median = statistics.median(one["score"] for one in result["trials"])
    yield ""
    yield (
        f"{len(failed)} of {len(result['trials'])} trials score below {100 * DID_NOT_LEARN:.0f} %; "
        f"{with_sigmoid} of these have a sigmoid layer. The median score is {percent(median)} %."
    )


def _look_up(recipe: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key such as `model.layers[0].filters`."""
    value: Any = recipe
    for part in key.replace("]", "").replace("[", ".").split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value
