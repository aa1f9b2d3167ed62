"""What is measured: the networks of shipped recipes, and how many operations and bytes they need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fmcli.recipe import MemberSpec, Recipe, load_recipe
from fmcli.recipe.augment import AugmentSpec
from fmcli.recipe.families import expand_layers
from fmcli.recipe.tracing import LayerTrace, trace_layers

INPUT_SHAPE = (1, 28, 28)
N_CLASSES = 10
AUGMENT = AugmentSpec(rotate=20.0, translate=0.2)  # of kernel-vote
VOTE = ("quick-k3", "quick-k5", "quick-k7")  # whose vote is predicted

# Name: recipe and member; None for a recipe's only one.
WORKS: dict[str, tuple[str, str | None]] = {
    "roy-1": ("roy-1", None),
    "roy-2": ("roy-2", None),
    "mell-cnn": ("mell-cnn", None),
    "dalvi-cnn": ("dalvi-cnn", None),
    "m3": ("kernel-vote", "m3"),
    "m5": ("kernel-vote", "m5"),
    "m7": ("kernel-vote", "m7"),
    "quick-k3": ("quick", "k3"),
    "quick-k5": ("quick", "k5"),
    "quick-k7": ("quick", "k7"),
}


@dataclass(frozen=True, slots=True)
class Work:
    """A network and how it is trained.

    Args:
        recipe: With that member alone.
        member: Its augmentation replaced by none, or by rotation and translation.
        traces: The network, layer by layer.
    """

    recipe: Recipe
    member: MemberSpec
    traces: tuple[LayerTrace, ...]

    @property
    def batch_size(self) -> int:
        """How many images a step takes."""
        return self.member.trainer.batch_size


@cache
def load_work(name: str, *, augment: bool = False) -> Work:
    """Return a piece of work by its name in `WORKS`."""
    recipe_name, member_name = WORKS[name]
    recipe = load_recipe(recipe_name)
    member = next(one for one in recipe.members if member_name in (None, one.name))
    member = member.model_copy(update={"augment": AUGMENT if augment else AugmentSpec()})
    layers = expand_layers(member.model, N_CLASSES, INPUT_SHAPE)
    return Work(recipe.model_copy(update={"members": (member,)}), member, trace_layers(layers, INPUT_SHAPE, N_CLASSES))


def training_operations(traces: Sequence[LayerTrace]) -> int:
    """Return the operations of a training step for each image: two for each multiply-add.

    Each layer computes its output, the gradient of its weights and that of its input; the first needs no gradient of
    its input.
    """
    counts = [count for trace in traces if (count := trace.multiply_adds)]
    return 2 * (3 * sum(counts) - counts[0])


def training_bytes(traces: Sequence[LayerTrace]) -> int:
    """Return the bytes that a training step moves for each image, at 2 bytes a number.

    Each layer's output is written and read on the way forward, read once more on the way back, and its gradient written
    and read: five times. A guide, not a bound: what stays in a cache never reaches memory.
    """
    return 2 * 5 * sum(math.prod(trace.output_shape) for trace in traces)
