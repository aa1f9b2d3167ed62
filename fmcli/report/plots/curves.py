"""The figure of learning curves."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fmcli.errors import CheckpointError
from fmcli.events import EpochFinished
from fmcli.report.plots import style

_MAX_MARKERS = 15  # more would hide the curve
_WIDTH = 9.5  # inches
_VALIDATION: dict[str, Any] = {"linestyle": "-", "linewidth": 1.6, "markersize": 4}
_TRAINING: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0, "markersize": 3, "markerfacecolor": "white"}
_RING: dict[str, Any] = {
    "linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.3,
}  # fmt: skip


@style.house_style()
def curve_figure(
    histories: Mapping[str, Sequence[EpochFinished]], *, of: str, best: Mapping[str, int] | None = None
) -> Figure:
    """Draw training and validation loss and accuracy of all members by epoch.

    Members that were trained again from scratch have separate panels for the second time.

    Args:
        histories: The epochs of each member.
        of: Name of the run for the title.
        best: Best epoch (from 1) of each member in whose curves it should be marked. It is marked only in the panels of
            the first time.

    Raises:
        CheckpointError: No epoch is finished.
    """
    if not any(histories.values()):
        raise CheckpointError("there are no learning curves yet: no epoch is finished", hint="wait for the first epoch")
    phases = [phase for phase in (False, True) if any(e.retrained == phase for one in histories.values() for e in one)]
    line_styles = {
        member: {"color": color, "marker": marker}
        for member, color, marker in zip(histories, cycle(style.PALETTE), cycle(style.MARKERS), strict=False)
    }
    legend = _legend(line_styles, histories, bool(best))
    widths = [0.65 + style.text_width(str(entry.get_label()), style.NAME_SIZE) for entry in legend]
    available = _WIDTH - 2 * style.MARGIN
    columns = len(legend) if sum(widths) < available else max(1, int(available / max(widths)))
    height = 3.2 * len(phases) + 0.2 * -(-len(legend) // columns)
    figure = style.new_figure(_WIDTH, height, "Learning curves", of)
    for panels, retrained in zip(figure.subplots(len(phases), 2, squeeze=False), phases, strict=True):
        best_epochs = {} if retrained else best or {}
        for axes, measure in zip(panels, ("loss", "accuracy"), strict=True):
            for member, history in histories.items():
                epochs = [epoch for epoch in history if epoch.retrained == retrained]
                _draw_curves(axes, epochs, measure, line_styles[member], best_epochs.get(member))
            _label_axes(axes, measure, retrained=retrained)
    figure.legend(handles=legend, loc="outside lower left", ncols=columns)
    return figure


def _draw_curves(
    axes: Any, epochs: Sequence[EpochFinished], measure: str, line_style: Mapping[str, Any], best_epoch: int | None
) -> None:
    for kind, kind_style in (("train", _TRAINING), ("validation", _VALIDATION)):
        points = [
            (epoch.epoch, value) for epoch in epochs if (value := getattr(epoch, f"{kind}_{measure}")) is not None
        ]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, **line_style, **kind_style, markevery=-(-len(x) // _MAX_MARKERS))
        if kind == "validation" and best_epoch in x:
            axes.plot(best_epoch, y[x.index(best_epoch)], **_RING, color=line_style["color"])


def _legend(
    line_styles: Mapping[str, Mapping[str, Any]], histories: Mapping[str, Sequence[EpochFinished]], has_best: bool
) -> list[Any]:
    """Return legend entries for the members, the two kinds of curves, and the best epoch."""
    entries = [
        Line2D([], [], **line_style, label=style.shorten(member, style.MAX_NAME_WIDTH, style.NAME_SIZE))
        for member, line_style in line_styles.items()
    ]
    if any(epoch.validation_loss is not None for one in histories.values() for epoch in one):
        entries.append(Line2D([], [], color=style.MUTED, **_VALIDATION, label="validation"))
    entries.append(Line2D([], [], color=style.MUTED, **_TRAINING, label="training (mean over the epoch)"))
    if has_best:
        entries.append(Line2D([], [], color=style.MUTED, **{**_RING, "markersize": 8}, label="best epoch"))
    return entries


def _label_axes(axes: Any, measure: str, *, retrained: bool) -> None:
    name = "Loss (nats)" if measure == "loss" else "Accuracy"
    axes.set_title(f"{name}, retrained for the best number of epochs" if retrained else name)
    axes.set_xlabel("epoch")
    style.count_ticks(axes.xaxis)
    if measure == "accuracy":
        style.percent_ticks(axes.yaxis)
    axes.grid()
