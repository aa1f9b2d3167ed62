"""The figure of a hyperparameter search."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fmcli.errors import UsageError
from fmcli.experiments.results import SearchResult
from fmcli.report.plots import style

_WIDTH = 9.5  # inches
_MAX_KEY_WIDTH = 2.6  # inches for the name of a recipe key


@style.house_style()
def search_figure(result: SearchResult) -> Figure:
    """Draw the score of each trial, the best score so far, and the importance of each value.

    Args:
        result: Result of a search, finished or not.

    Raises:
        UsageError: No trial is complete.
    """
    if not (complete := result.best(1)):
        raise UsageError("there is nothing to draw yet: no trial is complete", remedies=["more-trials"])
    [best] = complete
    height = max(3.2, 0.6 + 0.24 * len(result.importance))
    finding = f"trial {best.number} is the best of {result.count('complete')}, {100 * (best.score or 0.0):.2f} %"
    figure = style.new_figure(_WIDTH, height, "Trials of a search", result.recipe, finding)
    if result.importance:
        scores, importance = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_importance(importance, result.importance)
    else:
        scores = figure.subplots()
    _draw_scores(scores, result)
    figure.legend(loc="outside lower left", ncols=4)
    return figure


def _draw_scores(axes: Any, result: SearchResult) -> None:
    scored = [(trial.number, trial.score) for trial in result.trials if trial.score is not None]
    numbers, scores = zip(*scored, strict=True)
    best_so_far = [*np.maximum.accumulate(scores), max(scores)]
    last = result.trials[-1].number
    axes.step([*numbers, last], best_so_far, where="post", color=style.MUTED, label="best so far")
    axes.plot(numbers, scores, "o", color=style.BLUE, label="trial")
    unscored = [trial.number for trial in result.trials if trial.state in ("pruned", "failed")]
    if unscored:
        axes.plot(unscored, [min(scores)] * len(unscored), "x", color=style.VERMILLION, label="stopped early or failed")
    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.6}
    axes.plot(numbers[scores.index(max(scores))], max(scores), "o", color=style.ORANGE, label="best trial", **ring)
    axes.set_title("Validation accuracy")
    axes.set_xlabel("trial")
    style.count_ticks(axes.xaxis)
    style.percent_ticks(axes.yaxis)
    axes.grid()


def _draw_importance(axes: Any, importance: Mapping[str, float]) -> None:
    order = sorted(importance.items(), key=lambda item: -item[1])
    names = [style.shorten(name, _MAX_KEY_WIDTH, style.NAME_SIZE) for name, _ in order]
    shares = [share for _, share in order]
    style.draw_bars(axes, names, shares, [f"{100 * share:.0f} %" for share in shares])
    axes.set_title("Importance (share of the variance)")
