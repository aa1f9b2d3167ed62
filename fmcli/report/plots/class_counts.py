"""The figure of class counts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.report.plots.style import BLUE, HEADING, NAMES, fit, set_title, styled, text_width

_NAME = 1.8  # inches a name may take


@styled
def class_count_figure(counts: Mapping[str, NDArray[np.int64]], class_names: Sequence[str], *, source: str) -> Figure:
    """Return how many images each class has, a panel a split, each on its own scale.

    Args:
        counts: For each split, (n_classes,).
        class_names: In label order.
        source: What the images are called.
    """
    names = [fit(name, _NAME, NAMES) for name in class_names]
    beside = max(text_width(name, NAMES) for name in names)
    figure = Figure(figsize=(0.5 + beside + 2.3 * len(counts), HEADING + 0.5 + 0.24 * len(names)), layout="constrained")
    total = sum(int(of_split.sum()) for of_split in counts.values())
    set_title(figure, "Images of each class", source, f"{total:,} images in {len(names)} classes")
    places = np.arange(len(names))
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, of_split) in zip(panels, counts.items(), strict=True):
        # Every bar has its number, so that there is no need of an axis.
        bars = axes.barh(places, of_split, height=0.74, color=BLUE)
        axes.bar_label(bars, [f"{count:,}" for count in of_split], padding=3, fontsize=NAMES)
        axes.set_title(f"{split}: {int(of_split.sum()):,}")
        axes.set(xlim=(0, 1.25 * max(1, int(of_split.max()))), ylim=(len(names) - 0.5, -0.5), xticks=())
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    return figure
