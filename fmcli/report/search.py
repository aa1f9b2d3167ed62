"""The result of `fmcli search`."""

from dataclasses import asdict

from fmcli.experiments.results import SearchResult, State
from fmcli.report.document import Document, Sheet, percent, show_value

_N_BEST = 5  # trials to show next to the untuned values


def search_document(result: SearchResult) -> Document:
    """Return the values of the best trials next to the untuned values, and the importance of each value."""
    best = result.best(_N_BEST)
    columns = ["Value", ">Untuned", *(f">Trial {trial.number}" for trial in best)]
    rows = [
        [key, show_value(untuned), *(show_value(trial.values[key]) for trial in best)]
        for key, untuned in result.untuned.items()
    ]
    main = Sheet(
        title=f"{result.recipe}: the best of {len(result.trials)} trials",
        columns=columns,
        rows=[*rows, ["Validation accuracy", "", *(percent(trial.score) for trial in best)]],
        summary=1,
        notes=_notes(result),
    )
    order = sorted(result.importance.items(), key=lambda item: -item[1])
    importance = Sheet(
        title="Importance of each value (percentage of the variance between trials, by fANOVA)",
        columns=["Value", ">Importance"],
        rows=[[key, percent(part)] for key, part in order],
    )
    payload = asdict(result) | {"best": [asdict(trial) for trial in best]}
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
    left = result.asked - len(result.trials)
    unfinished = [f"{left} of {result.asked} trials have not started yet."] if left > 0 else []
    reasons = [f"  trial {trial.number}: {trial.reason}" for trial in result.trials if trial.reason]
    return [f"{len(result.trials)} trials: {', '.join(counts)}."] * bool(counts) + reasons + unfinished
