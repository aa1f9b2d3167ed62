"""Names of the choices in recipes and command-line options, and the kinds of image sources."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

SheetFormat = Literal["table", "markdown", "latex"]
"""Output format for people."""
Format = Literal[SheetFormat, "json", "jsonl", "csv"]
"""Output format of a result."""
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
RuleName = Literal[
    "majority",
    "weighted-majority",
    "soft",
    "weighted-soft",
    "geometric",
    "borda",
    "two-level",
    "stacking",
]
"""Name of a voting rule. Its file is in `ensemble.rules`."""
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)
SelectionMethod = Literal["greedy", "exhaustive", "diverse"]
Measure = Literal["accuracy", "loss"]
"""Score by which members are selected. The other score breaks ties."""
SoupMethod = Literal["greedy", "uniform"]
TieRule = Literal["probability", "lowest", "first"]
Views = Literal["none", "flip", "shift", "flip-shift"]
"""Views of an image whose predictions are averaged: mirrored, shifted by a pixel, or both."""
ExecutorName = Literal["sequential", "processes", "cuda_streams"]
"""How the members of a run are trained. Each name is a module in `training/executors/`."""
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


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Shape and classes of a source's images.

    Args:
        input_shape: (C, H, W) of one image.
        class_names: Class names in label order.
        n_train: Number of training images; None if unknown.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    n_train: int | None = None


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of image source, which a module in `fmcli.data.sources` reads.

    Help texts, checks and error messages use these values.

    Args:
        description: Noun phrase that describes the source.
        argument: Placeholder of the text after the colon in `data.source`, such as `DIR`; empty if there is no colon.
            For `DIR` and `FILE`, the text is a path.
        own_validation: Where the source has its own validation images, for example `the folder validation`; empty if it
            has none.
        keys: Keys of `[data]` that only some kinds of sources have, and that this kind has.
        built_in: Shape and classes of each built-in dataset, by its argument. Empty if any argument is allowed.
    """

    description: str
    argument: str = ""
    own_validation: str = ""
    keys: tuple[str, ...] = ()
    built_in: Mapping[str, SourceFacts] = field(default_factory=dict)

    @property
    def takes_path(self) -> bool:
        """Whether the text after the colon is a path."""
        return self.argument in ("DIR", "FILE")


SOURCES: dict[str, SourceKind] = {
    "fashion-mnist": SourceKind(
        "70,000 grey images of clothes in 10 classes",
        built_in={
            "": SourceFacts(
                input_shape=(1, 28, 28),
                class_names=(
                    "T-shirt/top",
                    "Trouser",
                    "Pullover",
                    "Dress",
                    "Coat",
                    "Sandal",
                    "Shirt",
                    "Sneaker",
                    "Bag",
                    "Ankle boot",
                ),
                n_train=60_000,
            )
        },
    ),
    "folder": SourceKind(
        "a folder with one subfolder of image files per class",
        argument="DIR",
        own_validation="the folder `validation`",
        keys=("size", "channels"),
    ),
    "idx": SourceKind(
        "a folder of IDX files",
        argument="DIR",
        own_validation="the files `validation-images-idx3-ubyte` and `validation-labels-idx1-ubyte`",
    ),
    "npz": SourceKind(
        "an archive of NumPy arrays",
        argument="FILE",
        own_validation="the arrays `val_images` and `val_labels`",
    ),
}
"""The kinds of image sources, by the prefix of `data.source`."""
BUILT_IN_SOURCES = {
    f"{prefix}:{argument}" if argument else prefix: facts
    for prefix, kind in SOURCES.items()
    for argument, facts in kind.built_in.items()
}
"""Shape and classes of each built-in dataset, by its complete name in `data.source`."""
SOURCE_FORMS = {prefix: f"{prefix}:{kind.argument}" if kind.argument else prefix for prefix, kind in SOURCES.items()}
"""How to write each kind of source, such as `folder:DIR`."""
DEFAULT_SOURCE = "fashion-mnist"
"""Source that the commands show and download if none is given."""
