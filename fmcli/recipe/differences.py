"""Compare the values of two recipes."""

from fmcli.errors import printable
from fmcli.recipe.recipe import Recipe


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return one line per value that differs and affects training or voting.

    Names, descriptions and references of recipes are ignored.

    Args:
        old: The recipe whose values are shown after `was`.
        new: The recipe whose values are shown after `now`.
    """
    return show_differences(_compared_values(old), _compared_values(new))


def _compared_values(recipe: Recipe) -> dict[str, object]:
    """Return all values that affect a run, with the order of the members, because a member's seed depends on it."""
    return {
        "data": recipe.data.model_dump(),
        "ensemble": recipe.ensemble.model_dump(),
        "order of members": [member.name for member in recipe.members],
        "members": {member.name: member.model_dump() for member in recipe.members},
    }


def show_differences(old: object, new: object, path: str = "") -> list[str]:
    """Return one line per path at which two nested tables differ.

    Example:
        >>> show_differences({"lr": 0.1, "name": "sgd"}, {"lr": 0.2, "name": "sgd"}, "optimizer")
        ['optimizer.lr: was 0.1, now 0.2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in (*old, *(key for key in new if key not in old))
            for line in show_differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: was {printable(old)}, now {printable(new)}"]
