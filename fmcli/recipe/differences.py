"""Where two recipes would train different networks."""

from fmcli.errors import printable
from fmcli.recipe.specs import Recipe


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return a line for each value that differs, but for the recipes' names, descriptions and references.

    Args:
        old: Shown as `was`.
        new: Shown as `now`.
    """
    return _differences(_what_counts(old), _what_counts(new))


def _what_counts(recipe: Recipe) -> dict[str, object]:
    """Return what makes a run: a member's seed comes from its place, so the order counts, too."""
    return {
        "data": recipe.data.model_dump(),
        "ensemble": recipe.ensemble.model_dump(),
        "order of members": [member.name for member in recipe.members],
        "members": {member.name: member.model_dump() for member in recipe.members},
    }


def _differences(old: object, new: object, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in (*old, *(key for key in new if key not in old))
            for line in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: was {printable(old)}, now {printable(new)}"]
