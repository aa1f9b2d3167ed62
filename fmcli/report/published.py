"""The result of `fmcli reproduce`: published scores and ours."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from fmcli.choices import SPLITS
from fmcli.experiments.results import SystemResult
from fmcli.report.document import Document, Record, interval, percent, points
from fmcli.report.sheet import Row, Sheet

_NOTED_RECALL_GAP = 0.05  # a class whose recall is lower than published by more than this is listed in a note


def published_document(results: Sequence[SystemResult]) -> Document:
    """Return a table of all systems, a table of their votes, and the recall of each class if it was published."""
    records = [_record(result) for result in results]
    main = Sheet(
        title="Published results and ours",
        rows=[_row(record) for record in records],
        notes=[
            "Ours: mean accuracy over the seeds, ± its standard deviation, and the 95 % interval of the mean. With one "
            "seed, the interval is over the images.",
            "Reached: ours is at least the published accuracy, or the interval contains it.",
            "Epochs, Seconds: means over the seeds.",
            *(f"{one.name} differs from the shipped recipe: {change}" for one in results for change in one.changes),
        ],
    )
    votes = Sheet(
        title="Votes and their members on test",
        rows=[_vote_row(result) for result in results if len(result.seeds[0].members) > 1],
        notes=["Means over the seeds. Best member: the most accurate member of each seed."],
    )
    by_class = [_class_sheet(result) for result in results if result.reference.test_recall]
    payload = {"systems": [_payload(result, record) for result, record in zip(results, records, strict=True)]}
    return Document([main, *([votes] if votes.rows else []), *by_class], payload, records)


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


def _row(record: Record) -> Row:
    return {
        "System": record["system"],
        "Split": record["split"],
        ">Published": percent(record["published"]),
        ">Ours": percent(record["mean"]),
        ">±": percent(record["spread"]),
        ">Difference": points(record["difference"]),
        ">95 % interval": interval(record["low"], record["high"]),
        "Reached": {None: "", True: "yes", False: "no"}[record["reached"]],
        ">Seeds": record["seeds"],
        ">Epochs": f"{record['epochs']:.4g}",
        ">Seconds": round(record["seconds"]),
    }


def _vote_row(result: SystemResult) -> Row:
    vote = fmean(result.accuracies("test"))
    best = fmean(max(seed.members.values()) for seed in result.seeds)
    return {
        "System": result.name,
        ">Vote": percent(vote),
        ">Best member": percent(best),
        ">Gain": points(vote - best),
        "Members": ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in result.member_means().items()),
    }


def _class_sheet(result: SystemResult) -> Sheet:
    published = result.reference.test_recall
    gaps = {name: result.recall(name) - recall for name, recall in published.items()}
    low = ", ".join(name for name, gap in gaps.items() if gap < -_NOTED_RECALL_GAP)
    note = f"More than {100 * _NOTED_RECALL_GAP:.0f} points below the published recall: {low}"
    return Sheet(
        title=f"{result.name}: recall of each class on test",
        rows=[
            {
                "Class": name,
                ">Published": percent(recall),
                ">Ours": percent(result.recall(name)),
                ">Difference": points(gaps[name]),
            }
            for name, recall in published.items()
        ],
        notes=[note] if low else [],
    )


def _payload(result: SystemResult, record: Record) -> dict[str, Any]:
    recall = {
        name: {"published": result.reference.test_recall.get(name), "mean": result.recall(name)}
        for name in result.seeds[0].recall
    }
    return {
        **record,
        "source": result.reference.source,
        "published_accuracy": {
            split: accuracy for split in SPLITS if (accuracy := result.reference.accuracy_on(split)) is not None
        },
        "test_recall": recall,
        "changes": result.changes,
        "trainings": [asdict(seed) for seed in result.seeds],
    }
