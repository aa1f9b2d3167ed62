"""Words that a user chooses from, in recipes and on the command line alike."""

from typing import Literal, get_args

Format = Literal["table", "json", "jsonl", "csv"]
"""How a result is written."""
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
"""What members are chosen by; among equally good choices, the other decides."""
SoupMethod = Literal["greedy", "uniform"]
TieRule = Literal["probability", "lowest", "first"]
Views = Literal["none", "flip", "shift", "flip-shift"]
"""Which altered views of an image to average over: mirrored, moved by a pixel, or both."""
Invert = Literal["auto", "never", "always"]
"""Whether to swap the dark and the light of a foreign picture."""
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
"""Those of a run; `trials` is of a search."""
FigureChoice = Literal[FigureName, "all"]
FileFormat = Literal["png", "svg", "pdf"]
"""How a figure is written."""
