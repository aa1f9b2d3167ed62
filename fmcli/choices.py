"""Words that a user chooses from, in recipes and on the command line alike."""

from typing import Literal, get_args

Format = Literal["table", "json", "jsonl", "csv"]
"""How a result is written."""
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
VotingRule = Literal["majority", "soft"]
TieRule = Literal["probability", "lowest", "first"]
Invert = Literal["auto", "never", "always"]
"""Whether to swap the dark and the light of a foreign picture."""
FigureName = Literal[
    "samples",
    "class-counts",
    "curves",
    "confusion",
    "precision-recall",
    "reliability",
    "predictions",
    "mistakes",
    "trials",
]
FIGURES: tuple[FigureName, ...] = tuple(name for name in get_args(FigureName) if name != "trials")
"""Those of a run; `trials` is of a search."""
FigureChoice = Literal[FigureName, "all"]
FileFormat = Literal["png", "svg", "pdf"]
"""How a figure is written."""
Storage = Literal["journal", "sqlite"]
"""What keeps the trials of a search."""
