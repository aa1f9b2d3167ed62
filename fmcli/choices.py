"""Names of the choices in recipes and command-line options."""

from typing import Literal, get_args

Format = Literal["table", "json", "jsonl", "csv"]
"""Output format of a result."""
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
VotingRule = Literal[
    "majority",
    "weighted-majority",
    "soft",
    "weighted-soft",
    "geometric",
    "borda",
    "two-level",
    "stacking",
]
SelectionMethod = Literal["greedy", "exhaustive", "diverse"]
Measure = Literal["accuracy", "loss"]
"""Score by which members are selected. The other score breaks ties."""
SoupMethod = Literal["greedy", "uniform"]
TieRule = Literal["probability", "lowest", "first"]
Views = Literal["none", "flip", "shift", "flip-shift"]
"""Views of an image whose predictions are averaged: mirrored, shifted by a pixel, or both."""
Invert = Literal["auto", "never", "always"]
"""Whether to invert dark and light of an image before it is classified."""
FigureName = Literal[
    "samples",
    "class-counts",
    "curves",
    "confusion",
    "precision-recall",
    "reliability",
    "coverage",
    "predictions",
    "mistakes",
    "trials",
]
FIGURES: tuple[FigureName, ...] = tuple(name for name in get_args(FigureName) if name != "trials")
"""Figures of a run. `trials` is the figure of a search."""
FigureChoice = Literal[FigureName, "all"]
FileFormat = Literal["png", "svg", "pdf"]
"""File format of a figure."""
