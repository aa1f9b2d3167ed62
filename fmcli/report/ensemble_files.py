"""The results of `fmcli ensemble select` and `fmcli ensemble fit`, which write ensemble files."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmcli.choices import Measure
from fmcli.ensemble import Combiner
from fmcli.ensemble.selection import Selection
from fmcli.report.document import Document, count, percent
from fmcli.report.ensemble_evaluation import describe_rule
from fmcli.report.sheet import Sheet


def selection_document(
    combiner: Combiner, selection: Selection, names: Sequence[str], by: Measure, *, n_images: int, output: Path
) -> Document:
    """Return the selected members, their validation score, and the next command.

    Args:
        combiner: The fitted voting rule of the selected members.
        selection: The selection.
        names: Names of all members of the pool.
        by: Measure that was optimised.
        n_images: Number of validation images.
        output: The ensemble file.
    """
    records = [
        {"member": names[index], "count": times, "weight": times / sum(selection.counts)}
        for index, times in zip(selection.members, selection.counts, strict=True)
    ]
    sheet = Sheet(
        title=f"Selected from {len(names)} members on {n_images:,} validation images, for a {combiner.rule.name} vote",
        rows=[
            {"Member": names[index], ">Times selected": times, ">Weight": f"{times / sum(selection.counts):.3f}"}
            for index, times in zip(selection.members, selection.counts, strict=True)
        ],
        notes=[
            f"Validation {by} of the vote: {_format_score(selection.score, by)}. Best single member, "
            f"{names[selection.best_member]}: {_format_score(selection.best_member_score, by)}. Vote of all "
            f"{len(names)} members: {_format_score(selection.pool_score, by)}.",
            "The members were selected on these images, so these scores are too optimistic. Evaluate on test images.",
            f"Ensemble: {output}",
        ],
        hints=[_next_command(output)],
    )
    payload = {
        "ensemble": str(output),
        "vote": combiner.rule.name,
        "temperature": combiner.temperature,
        "by": by,
        "score": selection.score,
        "best_member": names[selection.best_member],
        "best_member_score": selection.best_member_score,
        "pool_score": selection.pool_score,
        "considered": len(names),
        "members": records,
    }
    return Document([sheet], payload, records)


def _format_score(score: float, by: Measure) -> str:
    return f"{percent(score)} %" if by == "accuracy" else f"{score:.4f}"


def fit_document(names: tuple[str, ...], combiner: Combiner, accuracy: float | None, output: Path) -> Document:
    """Return the fitted weights and temperature, and the next command.

    Args:
        names: Names of the members.
        combiner: The fitted voting rule with its temperature.
        accuracy: Validation accuracy of the vote; None if the members share no validation images.
        output: The ensemble file.
    """
    rule = combiner.rule
    weights = rule.weights or (1.0,) * len(names)
    records: list[dict[str, Any]] = [
        {"member": name, "weight": weight / sum(weights)} for name, weight in zip(names, weights, strict=True)
    ]
    fitted = (
        "Nothing was fitted: the members share no validation images."
        if accuracy is None
        else f"Validation accuracy {percent(accuracy)} %; temperature {combiner.temperature:.3f}."
    )
    sheet = Sheet(
        title=f"{describe_rule(rule)} of {count(len(names), 'member')}",
        rows=[
            {"Member": record["member"], **({">Weight": f"{record['weight']:.3f}"} if rule.takes_weights else {})}
            for record in records
        ],
        notes=[fitted, f"Ensemble: {output}"],
        hints=[_next_command(output)],
    )
    payload = {
        "ensemble": str(output),
        "vote": combiner.rule.name,
        "temperature": combiner.temperature,
        "validation_accuracy": accuracy,
        "members": records,
    }
    return Document([sheet], payload, records)


def _next_command(output: Path) -> str:
    return f"Next: fmcli ensemble evaluate {shlex.quote(str(output))}"
