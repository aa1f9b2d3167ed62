"""Published systems as documents: their figures beside ours."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from fmcli.choices import SPLITS
from fmcli.experiments.results import SystemResult
from fmcli.report.document import Document, Record, Sheet, percent

_FAR_BELOW = 0.05  # of a class's recall: said in a note


def published_document(results: Sequence[SystemResult]) -> Document:
    """Return one table of all systems, then each class of those whose recall was published."""
    records = [_record(result) for result in results]
    main = Sheet(
        title="Published systems, and ours",
        columns=["System", "Split", ">Published", ">Ours", ">±", ">Difference", ">95 % interval", "Reached",
                 ">Seeds", ">Epochs", ">Seconds"],
        rows=[_row(record) for record in records],
        notes=[
            "Ours: mean accuracy over the seeds, ± their standard deviation, and the 95 % interval of that mean; "
            "of one seed, over such images.",
            "Reached: ours is at or above the published figure, or its interval holds it. Seconds: of one training.",
            *(f"{result.name} was not trained as shipped: {change}" for result in results for change in result.changes),
        ],
    )  # fmt: skip
    votes = [result for result in results if len(result.seeds[0].members) > 1]
    by_class = [_class_sheet(result) for result in results if result.reference.test_recall]
    payload = {"systems": [_payload(result, record) for result, record in zip(results, records, strict=True)]}
    return Document([main, *([_votes_sheet(votes)] if votes else []), *by_class], payload, records)


def _record(result: SystemResult) -> dict[str, Any]:
    low, high = result.interval
    n = len(result.seeds)
    return {
        "system": result.name,
        "split": result.split,
        "published": result.published,
        "mean": result.mean,
        "spread": result.spread,
        "difference": result.difference,
        "low": low,
        "high": high,
        "reached": result.reached,
        "seeds": n,
        "epochs": sum(seed.epochs for seed in result.seeds) / n,
        "seconds": sum(seed.seconds for seed in result.seeds) / n,
    }


def _row(record: Record) -> list[str]:
    difference = "" if record["difference"] is None else f"{100 * record['difference']:+.2f}"
    return [
        record["system"],
        record["split"],
        percent(record["published"]),
        percent(record["mean"]),
        percent(record["spread"]),
        difference,
        f"{percent(record['low'])} to {percent(record['high'])}",
        {None: "", True: "yes", False: "no"}[record["reached"]],
        str(record["seeds"]),
        f"{record['epochs']:.4g}",
        f"{record['seconds']:,.0f}",
    ]


def _votes_sheet(results: Sequence[SystemResult]) -> Sheet:
    return Sheet(
        title="Votes beside their members, on test",
        columns=["System", ">Vote", ">Best member", ">Gain", "Members"],
        rows=[_votes_row(result) for result in results],
        notes=["Means over the seeds; the best member is that of each seed."],
    )


def _votes_row(result: SystemResult) -> list[str]:
    vote = fmean(result.accuracies("test"))
    best = fmean(max(seed.members.values()) for seed in result.seeds)
    members = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in result.member_means().items())
    return [result.name, percent(vote), percent(best), f"{100 * (vote - best):+.2f}", members]


def _class_sheet(result: SystemResult) -> Sheet:
    published = result.reference.test_recall
    ours = {name: result.recall(name) for name in published}
    below = [name for name in published if ours[name] < published[name] - _FAR_BELOW]
    notes = [f"More than {100 * _FAR_BELOW:.0f} points below the published recall: {', '.join(below)}"] if below else []
    return Sheet(
        title=f"{result.name}: recall of each class on test",
        columns=["Class", ">Published", ">Ours", ">Difference"],
        rows=[
            [name, percent(published[name]), percent(ours[name]), f"{100 * (ours[name] - published[name]):+.2f}"]
            for name in published
        ],
        notes=notes,
    )


def _payload(result: SystemResult, record: Record) -> dict[str, Any]:
    names = result.seeds[0].recall
    recall = {
        name: {"published": result.reference.test_recall.get(name), "mean": result.recall(name)} for name in names
    }
    published = {split: result.published_on(split) for split in SPLITS}
    return {
        **record,
        "source": result.reference.source,
        "published_accuracy": {split: value for split, value in published.items() if value is not None},
        "test_recall": recall,
        "changes": list(result.changes),
        "trainings": [asdict(seed) for seed in result.seeds],
    }
