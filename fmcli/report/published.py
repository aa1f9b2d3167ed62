"""The result of `fmcli reproduce`: published scores and ours."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from fmcli.choices import SPLITS
from fmcli.experiments.results import SystemResult
from fmcli.report.document import Document, Record, Sheet, percent

_NOTED_RECALL_GAP = 0.05  # a class whose recall is lower than published by more than this is listed in a note


def published_document(results: Sequence[SystemResult]) -> Document:
    """Return a table of all systems, a table of their votes, and the recall of each class if it was published."""
    records = [_record(result) for result in results]
    main = Sheet(
        title="Published results and ours",
        columns=["System", "Split", ">Published", ">Ours", ">±", ">Difference", ">95 % interval", "Reached",
                 ">Seeds", ">Epochs", ">Seconds"],
        rows=[_row(record) for record in records],
        notes=[
            "Ours: mean accuracy over the seeds, ± its standard deviation, and the 95 % interval of the mean. With one "
            "seed, the interval is over the images.",
            "Reached: ours is at least the published accuracy, or the interval contains it. Seconds: per training.",
            *(f"{one.name} differs from the shipped recipe: {change}" for one in results for change in one.changes),
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
        title="Votes and their members on test",
        columns=["System", ">Vote", ">Best member", ">Gain", "Members"],
        rows=[_votes_row(result) for result in results],
        notes=["Means over the seeds. Best member: the most accurate member of each seed."],
    )


def _votes_row(result: SystemResult) -> list[str]:
    vote = fmean(result.accuracies("test"))
    best = fmean(max(seed.members.values()) for seed in result.seeds)
    members = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in result.member_means().items())
    return [result.name, percent(vote), percent(best), f"{100 * (vote - best):+.2f}", members]


def _class_sheet(result: SystemResult) -> Sheet:
    published = result.reference.test_recall
    ours = {name: result.recall(name) for name in published}
    below = [name for name in published if ours[name] < published[name] - _NOTED_RECALL_GAP]
    notes = (
        [f"More than {100 * _NOTED_RECALL_GAP:.0f} points below the published recall: {', '.join(below)}"]
        if below
        else []
    )
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
