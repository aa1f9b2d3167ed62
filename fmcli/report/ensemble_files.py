"""The results of `fmcli ensemble select` and `fmcli ensemble fit`, which write ensemble files."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fmcli.choices import Measure
from fmcli.ensemble import Combiner
from fmcli.ensemble.selection import Selection
from fmcli.report.document import Document, Sheet, percent
from fmcli.report.ensemble_evaluation import describe_rule


def selection_document(
    rule: Combiner, selection: Selection, names: Sequence[str], by: Measure, *, n_images: int, output: Path
) -> Document:
    """Return who was chosen, how good that is, and what comes next.

    Args:
        rule: How the chosen are combined.
        selection: Who was chosen.
        names: Of all members of the pool.
        by: What they were chosen by.
        n_images: On how many validation images.
        output: The ensemble file.
    """
    records = [
        {"member": names[place], "count": count, "weight": count / sum(selection.counts)}
        for place, count in zip(selection.members, selection.counts, strict=True)
    ]
    sheet = Sheet(
        title=f"Chosen from {len(names)} members on {n_images:,} validation images, for a {rule.vote} vote",
        columns=["Member", ">Times", ">Weight"],
        rows=[[str(row["member"]), str(row["count"]), f"{row['weight']:.3f}"] for row in records],
        notes=[
            f"Validation {by} of the vote: {_show_score(selection.score, by)}; of the best member alone, "
            f"{names[selection.best_member]}: {_show_score(selection.best_member_score, by)}; of a vote of all "
            f"{len(names)}: {_show_score(selection.pool_score, by)}.",
            "What was chosen on these images looks better on them than it is; test images judge it.",
            *_next_steps(output),
        ],
    )
    payload = {
        "ensemble": str(output),
        "vote": rule.vote,
        "temperature": rule.temperature,
        "by": by,
        "score": selection.score,
        "best_member": names[selection.best_member],
        "best_member_score": selection.best_member_score,
        "pool_score": selection.pool_score,
        "considered": len(names),
        "members": records,
    }
    return Document([sheet], payload, records)


def _show_score(score: float, by: Measure) -> str:
    return f"{percent(score)} %" if by == "accuracy" else f"{score:.4f}"


def fit_document(names: tuple[str, ...], rule: Combiner, accuracy: float | None, output: Path) -> Document:
    """Return what was learnt, and what comes next."""
    weights = rule.weights or (1.0,) * len(names)
    total = sum(weights)
    records = [{"member": name, "weight": weight / total} for name, weight in zip(names, weights, strict=True)]
    learnt = (
        "Nothing was learnt: the members have no validation images in common."
        if accuracy is None
        else f"Validation accuracy {percent(accuracy)} %; temperature {rule.temperature:.3f}."
    )
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {len(names)}",
        columns=["Member"] if rule.stacking else ["Member", ">Weight"],
        rows=[[str(row["member"]), *([] if rule.stacking else [f"{row['weight']:.3f}"])] for row in records],
        notes=[learnt, *_next_steps(output)],
    )
    payload = {
        "ensemble": str(output),
        "vote": rule.vote,
        "temperature": rule.temperature,
        "validation_accuracy": accuracy,
        "members": records,
    }
    return Document([sheet], payload, records)


def _next_steps(output: Path) -> list[str]:
    return [f"Ensemble: {output}", f"Next: fmcli ensemble evaluate {shlex.quote(str(output))}"]
