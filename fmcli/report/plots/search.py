"""The figure of a search."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcli.errors import UsageError
from fmcli.experiments.results import SearchResult
from fmcli.report.plots.style import (
    BLUE,
    HEADING,
    MUTED,
    NAMES,
    ORANGE,
    VERMILLION,
    fit,
    percent_ticks,
    set_title,
    styled,
    text_width,
)

_WIDTH = 9.5  # inches
_NAME = 2.6  # inches that a value's path may take


@styled
def search_figure(result: SearchResult) -> Figure:
    """Return every trial's score in its order, with the best so far, and how much each value mattered.

    Args:
        result: Of a search, finished or not.

    Raises:
        UsageError: No trial is complete.
    """
    if not result.best(1):
        raise UsageError(
            "no trial is complete, so there is nothing to draw", hint="fmcli search --resume --trials N tries more"
        )
    [best] = result.best(1)
    height = HEADING + max(3.2, 0.6 + 0.24 * len(result.importance))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    finding = f"the best of {result.count('complete')} is trial {best.number}, {100 * (best.score or 0.0):.2f} %"
    set_title(figure, "Trials of a search", result.recipe, finding)
    if result.importance:
        scores, importance = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_importance(importance, result)
    else:
        scores = figure.subplots()
    _draw_scores(scores, result)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _draw_scores(axes: Any, result: SearchResult) -> None:
    scored = [(trial.number, trial.score) for trial in result.trials if trial.score is not None]
    numbers, scores = zip(*scored, strict=True)
    so_far = [max(scores[: place + 1]) for place in range(len(scores))]
    axes.step(
        [*numbers, result.trials[-1].number], [*so_far, so_far[-1]], where="post", color=MUTED, label="best so far"
    )
    axes.plot(numbers, scores, "o", color=BLUE, label="a trial")
    without = [trial.number for trial in result.trials if trial.state in ("pruned", "failed")]
    if without:
        axes.plot(without, [min(scores)] * len(without), "x", color=VERMILLION, label="stopped early, or impossible")
    axes.plot(numbers[scores.index(max(scores))], max(scores), "o", ms=13, mfc="none", mew=1.6, color=ORANGE)
    axes.set_title("Validation accuracy")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    percent_ticks(axes.yaxis)
    axes.grid()


def _draw_importance(axes: Any, result: SearchResult) -> None:
    order = sorted(result.importance.items(), key=lambda item: item[1])
    names = [fit(name, min(_NAME, text_width(name, NAMES) + 0.1), NAMES) for name, _ in order]
    bars = axes.barh(range(len(order)), [part for _, part in order], height=0.74, color=BLUE)
    axes.bar_label(bars, [f"{100 * part:.0f} %" for _, part in order], padding=3, fontsize=NAMES)
    axes.set_yticks(range(len(order)), names)
    axes.set(xlim=(0, 1.2 * max(part for _, part in order)), xticks=())
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Part of the variance that each explains")
