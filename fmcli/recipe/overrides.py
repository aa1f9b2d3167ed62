"""Values laid over a recipe's table: `--set key=value`, and what a search draws."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from fmcli.errors import RecipeError, did_you_mean, is_utf8, printable
from fmcli.recipe.data import VALIDATION_KINDS, RandomFraction
from fmcli.recipe.recipe import SHARED_TABLES, Recipe

Table = dict[str, Any]
DEFAULT_MEMBER = "m1"
"""What a recipe's only member is called, if the recipe does not say."""


def apply_overrides(table: Table, overrides: Sequence[str]) -> Table:
    """Return a recipe's table with `key=value` strings laid over it.

    A value is read as TOML and, where that fails, as text. A shared key (`optimizer.lr`) also replaces what
    members say of it; `members.NAME.optimizer.lr` reaches one member alone.

    Args:
        table: As parsed from TOML.
        overrides: For instance `["optimizer.lr=3e-4", "members.m5.model.kernel_size=7"]`.

    Returns:
        A new table.

    Raises:
        RecipeError: An override has no `=`, is not UTF-8, or names a member or a table that is not there.

    Example:
        >>> apply_overrides({"trainer": {"epochs": 3}}, ["trainer.epochs=5", "optimizer.name=sgd"])
        {'trainer': {'epochs': 5}, 'optimizer': {'name': 'sgd'}}
    """
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise RecipeError(
                f"--set {printable(override)}: expected key=value",
                hint="for instance --set optimizer.lr=3e-4",
            )
        if not is_utf8(override):
            raise RecipeError(f"--set {printable(override)} is not UTF-8 text", hint="type that value in UTF-8")
        values[key.strip()] = _parse_value(text.strip())
    try:
        return set_values(table, values)
    except KeyError as error:
        raise RecipeError(f"--set {error.args[0]}", hint="for instance --set optimizer.lr=3e-4") from None


def set_values(table: Table, values: Mapping[str, Any]) -> Table:
    """Return a recipe's table with values laid over it.

    Args:
        table: As parsed from TOML.
        values: By path, e.g. `{"optimizer.lr": 3e-4, "model.layers[0].filters": 64}`.

    Returns:
        A new table.

    Raises:
        KeyError: A path leads nowhere; its first argument says where and why.
    """
    result: Table = _copy(table)
    for key, value in values.items():
        path = _parse_path(key)
        if path[0] == "members":
            member, path = _find_member(result, path, key)
            _take_over_list(member, result, path)
            _set_key(member, path, _copy(value), key)
            continue
        _drop_other_kinds(result, path)
        members = _member_tables(result) if path[0] in SHARED_TABLES else []
        having = [member for member in members if has_key(member, path)]
        for member in having:
            _set_key(member, path, _copy(value), key)
        if not members or len(having) < len(members) or has_key(result, path):
            _set_key(result, path, _copy(value), key)
    return result


def value_at(recipe: Recipe, key: str) -> Any:
    """Return the value that a path of `set_values` means in a resolved recipe, of its first member where shared.

    Returns:
        The value, default or not; None where there is none.
    """
    table = recipe.model_dump(mode="json")
    path = _parse_path(key)
    place: Any = table["members"][0] if path[0] in SHARED_TABLES else table
    if path[0] == "members":
        firsts = [{**one, "name": one["name"].removesuffix("-1")} for one in table["members"]]  # of several copies
        place, path = _find_member({"members": [*firsts, *table["members"]]}, path, key)
    if not has_key(place, path):
        return None
    for step in path:
        place = place[step]
    return place


def _parse_path(key: str) -> list[str | int]:
    """Return the steps of a path: names of keys, and places in lists.

    Example:
        >>> _parse_path("model.layers[0].filters")
        ['model', 'layers', 0, 'filters']
    """
    path: list[str | int] = []
    for step in key.split("."):
        name, *places = step.split("[")
        path.append(name)
        for place in places:
            number = place.removesuffix("]")
            if number == place or not number.isdecimal():
                raise KeyError(f"{printable(key)}: expected a place in a list, such as layers[0]")
            path.append(int(number))
    return path


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _member_tables(table: Table) -> list[Table]:
    members = table.get("members")
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []


def _find_member(table: Table, path: Sequence[str | int], key: str) -> tuple[Table, list[str | int]]:
    """Return the member that `members.NAME.key` names (a name may hold dots), and the rest of the path."""
    table.setdefault("members", [{"name": DEFAULT_MEMBER}])
    members = {str(member.get("name")): member for member in _member_tables(table)}
    for end in range(len(path) - 1, 1, -1):
        if (name := ".".join(map(str, path[1:end]))) in members:
            return members[name], list(path[end:])
    wrong = str(path[1]) if len(path) > 1 else ""
    raise KeyError(f"{printable(key)}: no such member; {did_you_mean(wrong, list(members))}")


def _take_over_list(member: Table, shared: Table, path: Sequence[str | int]) -> None:
    """Give a member its own copy of the shared list that a path leads into."""
    to_list = path[: next((place for place, step in enumerate(path) if isinstance(step, int)), 0)]
    if to_list and not has_key(member, to_list) and has_key(shared, to_list):
        value: Any = shared
        for step in to_list:
            value = value[step]
        _set_key(member, to_list, _copy(value), "")


def _drop_other_kinds(table: Table, path: Sequence[str | int]) -> None:
    """Let `data.validation.fraction` take the place of `first`: images are set aside in one way."""
    if has_key(table, path[:-1]) and path[:-1] == ["data", "validation"] and path[-1] in VALIDATION_KINDS:
        there = table["data"]["validation"]
        dropped = VALIDATION_KINDS if path[-1] == "fraction" else (*VALIDATION_KINDS, *RandomFraction.model_fields)
        for key in dropped if isinstance(there, dict) else ():
            if key != path[-1]:
                there.pop(key, None)


def _set_key(table: Any, path: Sequence[str | int], value: Any, key: str) -> None:
    for place, step in enumerate(path):
        _check_room(table, path, place, key)
        if place == len(path) - 1:
            table[step] = value
        else:
            table = table[step] if isinstance(step, int) else table.setdefault(step, {})


def _check_room(table: Any, path: Sequence[str | int], place: int, key: str) -> None:
    """Refuse a step of a path that a table or list has no room for."""
    step = path[place]
    if isinstance(step, int) and not _holds(table, step):
        there = f"has {len(table)} entries, from 0" if isinstance(table, list) else "is no list here"
        raise KeyError(f"{printable(key)}: no place {step}, since {printable(path[place - 1])} {there}")
    if isinstance(step, str) and not isinstance(table, dict):
        raise KeyError(f"{printable(key)}: {printable(path[place - 1])} is a value, not a table")


def has_key(table: Any, path: Sequence[str | int]) -> bool:
    """Tell whether a path leads to a value."""
    for step in path:
        if not _holds(table, step):
            return False
        table = table[step]
    return True


def _holds(table: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(table, list) and step < len(table)
    return isinstance(table, dict) and step in table
