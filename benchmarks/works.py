"""Networks of shipped recipes to measure, and the operations and bytes of their training steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fmcli.networks.tracing import trace_network
from fmcli.recipe import MemberSpec, Recipe, load_recipe
from fmcli.recipe.augment import AugmentSpec
from fmcli.recipe.tracing import LayerTrace

INPUT_SHAPE = (1, 28, 28)
N_CLASSES = 10
AUGMENT = AugmentSpec(rotate=20.0, translate=0.2)  # as in kernel-vote
VOTE = ("quick-k3", "quick-k5", "quick-k7")  # members of the vote in the prediction benchmark

# Name: (recipe, member). The member is None if the recipe has only one.
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
    """A network and its training.

    Args:
        recipe: Recipe with only this member.
        member: The member, either without augmentation or with rotation and translation.
        traces: Layers of the network with their shapes.
    """

    recipe: Recipe
    member: MemberSpec
    traces: tuple[LayerTrace, ...]

    @property
    def batch_size(self) -> int:
        """Number of images per step."""
        return self.member.trainer.batch_size


@cache
def load_work(name: str, *, augment: bool = False) -> Work:
    """Return an entry of `WORKS`."""
    recipe_name, member_name = WORKS[name]
    recipe = load_recipe(recipe_name)
    member = next(one for one in recipe.members if member_name in (None, one.name))
    member = member.model_copy(update={"augment": AUGMENT if augment else AugmentSpec()})
    traces = trace_network(member.model, INPUT_SHAPE, N_CLASSES)
    return Work(recipe.model_copy(update={"members": (member,)}), member, traces)


def training_operations(traces: Sequence[LayerTrace]) -> int:
    """Return the operations per image of a training step. A multiply-add counts as two operations.

    Each layer computes its output and the gradients of its weights and input. The first layer does not compute the
    gradient of its input.
    """
    counts = [count for trace in traces if (count := trace.multiply_adds)]
    return 2 * (3 * sum(counts) - counts[0])


def training_bytes(traces: Sequence[LayerTrace]) -> int:
    """Estimate the bytes per image that a training step moves, with 2 bytes per number.

    The output of each layer is written and read in the forward pass and read in the backward pass. Its gradient is
    written and read. The true number can be smaller, because cached data never reaches memory.
    """
    return 2 * 5 * sum(math.prod(trace.output_shape) for trace in traces)
