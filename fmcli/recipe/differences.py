"""Where two recipes would train different networks."""

from fmcli.errors import printable
from fmcli.recipe.specs import Recipe


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return a line for each value that differs, but for the recipes' names, descriptions and references.

    Args:
        old: Shown as `was`.
        new: Shown as `now`.
    """
    return show_differences(_what_counts(old), _what_counts(new))


def _what_counts(recipe: Recipe) -> dict[str, object]:
    """Return what makes a run: a member's seed comes from its place, so the order counts, too."""
    return {
        "data": recipe.data.model_dump(),
        "ensemble": recipe.ensemble.model_dump(),
        "order of members": [member.name for member in recipe.members],
        "members": {member.name: member.model_dump() for member in recipe.members},
    }


def show_differences(old: object, new: object, path: str = "") -> list[str]:
    """Return a line for each place at which two values, tables in tables, differ.

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
