"""The figure of class counts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.report.plots import style


@style.styled
def class_count_figure(counts: Mapping[str, NDArray[np.int64]], class_names: Sequence[str], *, source: str) -> Figure:
    """Draw the number of images of each class, one panel per split, each on its own scale.

    Args:
        counts: Number of images of each class, (n_classes,), for each split.
        class_names: Class names in label order.
        source: Name of the images for the title.
    """
    names = [style.shorten(name, style.MAX_NAME_WIDTH, style.NAME_SIZE) for name in class_names]
    width = 0.5 + max(style.text_width(name, style.NAME_SIZE) for name in names) + 2.3 * len(counts)
    figure = Figure(figsize=(width, style.HEADING_HEIGHT + 0.5 + 0.24 * len(names)), layout="constrained")
    total = sum(int(class_counts.sum()) for class_counts in counts.values())
    style.set_title(figure, "Images of each class", source, f"{total:,} images in {len(names)} classes")
    rows = np.arange(len(names))
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, class_counts) in zip(panels, counts.items(), strict=True):
        bars = axes.barh(rows, class_counts, height=0.74, color=style.BLUE)
        # Each bar has its number, so the x axis needs no ticks.
        axes.bar_label(bars, [f"{count:,}" for count in class_counts], padding=3, fontsize=style.NAME_SIZE)
        axes.set_title(f"{split}: {int(class_counts.sum()):,}")
        axes.set(xlim=(0, 1.25 * max(1, int(class_counts.max()))), ylim=(len(names) - 0.5, -0.5), xticks=())
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
    return figure
