"""The figure of class counts."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmcli.report.plots import style


@style.house_style()
def class_count_figure(counts: Mapping[str, NDArray[np.int64]], class_names: Sequence[str], *, source: str) -> Figure:
    """Draw the number of images of each class, one panel per split, each on its own scale.

    Args:
        counts: Number of images of each class, (n_classes,), for each split.
        class_names: Class names in label order.
        source: Name of the images for the title.
    """
    names = [style.shorten(name, style.MAX_NAME_WIDTH, style.NAME_SIZE) for name in class_names]
    width = 0.5 + max(style.text_width(name, style.NAME_SIZE) for name in names) + 2.3 * len(counts)
    total = sum(int(class_counts.sum()) for class_counts in counts.values())
    finding = f"{total:,} images in {len(names)} classes"
    figure = style.new_figure(width, 0.5 + 0.24 * len(names), "Images of each class", source, finding)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (split, class_counts) in zip(panels, counts.items(), strict=True):
        style.draw_bars(axes, names, class_counts.tolist(), [f"{count:,}" for count in class_counts])
        axes.set_title(f"{split}: {int(class_counts.sum()):,}")
    return figure
