"""Figures of a training: class counts of its splits, and learning curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fmcli.errors import CheckpointError
from fmcli.events import EpochFinished
from fmcli.report.plots.style import (
    HEADING,
    MARGIN,
    MARKERS,
    MUTED,
    NAMES,
    PALETTE,
    fit,
    percent_ticks,
    set_title,
    styled,
    text_width,
)

_MOST_MARKERS = 15  # on a curve; more would hide it
_WIDTH = 9.5  # inches
_NAME = 1.8  # inches a name may take
_VALIDATION: dict[str, Any] = {"linestyle": "-", "linewidth": 1.6, "markersize": 4}
_TRAINING: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.0, "markersize": 3, "markerfacecolor": "white"}
_RING: dict[str, Any] = {
    "linestyle": "", "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.3,
}  # fmt: skip


@styled
def curve_figure(
    histories: Mapping[str, Sequence[EpochFinished]], *, of: str, best: Mapping[str, int] | None = None
) -> Figure:
    """Return loss and accuracy by epoch, of training and validation, all members in one.

    Members that were trained afresh have their second training in panels of its own.

    Args:
        histories: For each member, an entry an epoch.
        of: What was trained.
        best: The epoch (from 1) of a first training to be ringed, for members that kept it or trained afresh by it.

    Raises:
        CheckpointError: There is no epoch.
    """
    if not any(histories.values()):
        raise CheckpointError("no epoch is finished, so there is no curve yet", hint="wait for the first epoch's end")
    phases = [phase for phase in (False, True) if any(e.retrained == phase for one in histories.values() for e in one)]
    looks = _looks(list(histories))
    legend = _legend(looks, histories, bool(best))
    widths = [0.65 + text_width(str(entry.get_label()), NAMES) for entry in legend]
    room = _WIDTH - 2 * MARGIN
    columns = len(legend) if sum(widths) < room else max(1, int(room / max(widths)))
    height = HEADING + 3.2 * len(phases) + 0.2 * -(-len(legend) // columns)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    set_title(figure, "Learning curves", of)
    for panels, retrained in zip(figure.subplots(len(phases), 2, squeeze=False), phases, strict=True):
        for member, history in histories.items():
            epochs = [epoch for epoch in history if epoch.retrained == retrained]
            ringed = None if retrained or best is None else best.get(member)
            for axes, measure in zip(panels, ("loss", "accuracy"), strict=True):
                _draw_curves(axes, epochs, measure, looks[member], ringed)
        for axes, measure in zip(panels, ("loss", "accuracy"), strict=True):
            _dress(axes, measure, retrained=retrained)
    figure.legend(handles=legend, loc="outside lower left", ncols=columns)
    return figure


def _looks(members: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each member."""
    return {
        member: {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
        for place, member in enumerate(members)
    }


def _draw_curves(
    axes: Any, epochs: Sequence[EpochFinished], measure: str, look: Mapping[str, Any], ringed: int | None
) -> None:
    for kind, line in (("train", _TRAINING), ("validation", _VALIDATION)):
        points = [
            (epoch.epoch, value) for epoch in epochs if (value := getattr(epoch, f"{kind}_{measure}")) is not None
        ]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, **look, **line, markevery=-(-len(x) // _MOST_MARKERS))
        if kind == "validation" and ringed in x:
            axes.plot(ringed, y[x.index(ringed)], **_RING, color=look["color"])


def _legend(
    looks: Mapping[str, Mapping[str, Any]], histories: Mapping[str, Sequence[EpochFinished]], ringed: bool
) -> list[Any]:
    """Return a line for each member, each kind of line, and the ring."""
    entries = [Line2D([], [], **look, label=fit(member, _NAME, NAMES)) for member, look in looks.items()]
    if any(epoch.validation_loss is not None for one in histories.values() for epoch in one):
        entries.append(Line2D([], [], color=MUTED, **_VALIDATION, label="validation"))
    entries.append(Line2D([], [], color=MUTED, **_TRAINING, label="training, mean over the epoch"))
    if ringed:
        entries.append(Line2D([], [], color=MUTED, **{**_RING, "markersize": 8}, label="best epoch"))
    return entries


def _dress(axes: Any, measure: str, *, retrained: bool) -> None:
    name = "Loss (nats)" if measure == "loss" else "Accuracy"
    axes.set_title(f"{name}, trained afresh for as many epochs as were best" if retrained else name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if measure == "accuracy":
        percent_ticks(axes.yaxis)
    axes.grid()
