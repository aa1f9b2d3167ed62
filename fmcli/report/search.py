"""The result of `fmcli search`."""

from dataclasses import asdict

from fmcli.experiments.results import SearchResult, State
from fmcli.report.document import Document, count, percent, show_value
from fmcli.report.sheet import Row, Sheet

_N_BEST = 5  # trials to show next to the untuned values


def search_document(result: SearchResult) -> Document:
    """Return the values of the best trials next to the untuned values, and the importance of each value."""
    best = {f">Trial {trial.number}": trial for trial in result.best(_N_BEST)}
    rows: list[Row] = [
        {
            "Value": key,
            ">Untuned": show_value(untuned),
            **{column: show_value(trial.values[key]) for column, trial in best.items()},
        }
        for key, untuned in result.untuned.items()
    ]
    rows.append({"Value": "Validation accuracy", **{column: percent(trial.score) for column, trial in best.items()}})
    main = Sheet(
        title=f"{result.recipe}: the best of {count(len(result.trials), 'trial')}",
        rows=rows,
        n_totals=1,
        notes=_notes(result),
    )
    order = sorted(result.importance.items(), key=lambda item: -item[1])
    importance = Sheet(
        title="Importance of each value (percentage of the variance between trials, by fANOVA)",
        rows=[{"Value": key, ">Importance": percent(share)} for key, share in order],
    )
    payload = asdict(result) | {"best": [asdict(trial) for trial in best.values()]}
    records = [
        {"trial": trial.number, "state": trial.state, "score": trial.score, **trial.values} for trial in result.trials
    ]
    return Document([main, importance] if order else [main], payload, records)


def _notes(result: SearchResult) -> list[str]:
    states: dict[State, str] = {
        "pruned": "stopped early",
        "failed": "without a score",
        "running": "still running in other processes",
    }
    counts = [f"{result.count(state)} {words}" for state, words in states.items() if result.count(state)]
    notes = [f"{count(len(result.trials), 'trial')}: {', '.join(counts)}."] if counts else []
    notes += [f"  trial {trial.number}: {trial.reason}" for trial in result.trials if trial.reason]
    if (left := result.asked - len(result.trials)) > 0:
        notes.append(f"Not started yet: {left} of {count(result.asked, 'trial')}.")
    return notes
