"""The figure of a hyperparameter search."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fmcli.errors import UsageError
from fmcli.experiments.results import SearchResult
from fmcli.report.plots import style

_WIDTH = 9.5  # inches
_MAX_KEY_WIDTH = 2.6  # inches for the name of a recipe key


@style.styled
def search_figure(result: SearchResult) -> Figure:
    """Draw the score of each trial, the best score so far, and the importance of each value.

    Args:
        result: Result of a search, finished or not.

    Raises:
        UsageError: No trial is complete.
    """
    if not result.best(1):
        raise UsageError("there is nothing to draw yet: no trial is complete", remedies=["more-trials"])
    [best] = result.best(1)
    height = style.HEADING_HEIGHT + max(3.2, 0.6 + 0.24 * len(result.importance))
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    finding = f"trial {best.number} is the best of {result.count('complete')}, {100 * (best.score or 0.0):.2f} %"
    style.set_title(figure, "Trials of a search", result.recipe, finding)
    if result.importance:
        scores, importance = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_importance(importance, result)
    else:
        scores = figure.subplots()
    _draw_scores(scores, result)
    figure.legend(loc="outside lower left", ncols=4)
    return figure


def _draw_scores(axes: Any, result: SearchResult) -> None:
    scored = [(trial.number, trial.score) for trial in result.trials if trial.score is not None]
    numbers, scores = zip(*scored, strict=True)
    best_so_far = [max(scores[: index + 1]) for index in range(len(scores))]
    axes.step(
        [*numbers, result.trials[-1].number],
        [*best_so_far, best_so_far[-1]],
        where="post",
        color=style.MUTED,
        label="best so far",
    )
    axes.plot(numbers, scores, "o", color=style.BLUE, label="trial")
    unscored = [trial.number for trial in result.trials if trial.state in ("pruned", "failed")]
    if unscored:
        axes.plot(unscored, [min(scores)] * len(unscored), "x", color=style.VERMILLION, label="stopped early or failed")
    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.6}
    axes.plot(numbers[scores.index(max(scores))], max(scores), "o", color=style.ORANGE, label="best trial", **ring)
    axes.set_title("Validation accuracy")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style.percent_ticks(axes.yaxis)
    axes.grid()


def _draw_importance(axes: Any, result: SearchResult) -> None:
    order = sorted(result.importance.items(), key=lambda item: item[1])
    names = [
        style.shorten(name, min(_MAX_KEY_WIDTH, style.text_width(name, style.NAME_SIZE) + 0.1), style.NAME_SIZE)
        for name, _ in order
    ]
    bars = axes.barh(range(len(order)), [share for _, share in order], height=0.74, color=style.BLUE)
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in order], padding=3, fontsize=style.NAME_SIZE)
    axes.set_yticks(range(len(order)), names)
    axes.set(xlim=(0, 1.2 * max(share for _, share in order)), xticks=())
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("Importance (share of the variance)")
