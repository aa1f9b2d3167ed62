"""Change values of a recipe by path, for overrides on the command line and for searches."""

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import reduce
from operator import getitem
from typing import Any

from fmcli.errors import RecipeError, Remedy, did_you_mean, is_utf8, printable
from fmcli.recipe.data import VALIDATION_KINDS, RandomFraction
from fmcli.recipe.recipe import SHARED_TABLES, Recipe

Table = dict[str, Any]
_EXAMPLE = Remedy("set", "optimizer.lr=3e-4")
DEFAULT_MEMBER = "m1"
"""Name of the member of a recipe without a `[[members]]` table."""


def apply_overrides(table: Table, overrides: Sequence[str]) -> Table:
    """Return a recipe's table after applying `key=value` strings.

    A value is parsed as TOML. If it is not TOML, it is text. A shared key (`optimizer.lr`) also replaces the values in
    the tables of members; `members.NAME.optimizer.lr` changes one member.

    Args:
        table: The table as parsed from TOML.
        overrides: Strings such as `["optimizer.lr=3e-4", "members.m5.model.kernel_size=7"]`.

    Returns:
        A new table.

    Raises:
        RecipeError: An override has no `=`, is not UTF-8, or changes a path that does not exist.

    Example:
        >>> apply_overrides({"trainer": {"epochs": 3}}, ["trainer.epochs=5", "optimizer.name=sgd"])
        {'trainer': {'epochs': 5}, 'optimizer': {'name': 'sgd'}}
    """
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise RecipeError(f"override {printable(override)!r}: expected key=value", remedies=[_EXAMPLE])
        if not is_utf8(override):
            raise RecipeError(
                f"override {printable(override)!r} is not UTF-8", hint="use a terminal with UTF-8 encoding"
            )
        values[key.strip()] = _parse_value(text.strip())
    try:
        return set_values(table, values)
    except KeyError as error:
        raise RecipeError(f"override {error.args[0]}", remedies=[_EXAMPLE]) from None


def set_values(table: Table, values: Mapping[str, Any]) -> Table:
    """Return the table of a recipe with changed values.

    Args:
        table: The table as parsed from TOML.
        values: Values by path, e.g. `{"optimizer.lr": 3e-4, "model.layers[0].filters": 64}`.

    Returns:
        A new table.

    Raises:
        KeyError: A path does not exist. The first argument is a message for the user.
    """
    result: Table = deepcopy(table)
    for key, value in values.items():
        path = _parse_path(key)
        if path[0] == "members":
            member, path = _find_member(result, path, key)
            _copy_shared_list(member, result, path)
            _set_key(member, path, deepcopy(value), key)
            continue
        _drop_other_validation_keys(result, path)
        members = _member_tables(result) if path[0] in SHARED_TABLES else []
        overriding = [member for member in members if has_key(member, path)]
        for member in overriding:
            _set_key(member, path, deepcopy(value), key)
        if not members or len(overriding) < len(members) or has_key(result, path):
            _set_key(result, path, deepcopy(value), key)
    return result


def value_at(recipe: Recipe, key: str) -> Any:
    """Return the value at a path in a resolved recipe, including defaults; None if the path does not exist.

    For a path in a shared table, return the value of the first member.
    """
    table = recipe.model_dump(mode="json")
    path = _parse_path(key)
    value: Any = table["members"][0] if path[0] in SHARED_TABLES else table
    if path[0] == "members":
        # The name of a [[members]] table with several copies means the first copy.
        first_copies = [{**member, "name": member["name"].removesuffix("-1")} for member in table["members"]]
        value, path = _find_member({"members": [*first_copies, *table["members"]]}, path, key)
    return _get(value, path) if has_key(value, path) else None


def _parse_path(key: str) -> list[str | int]:
    """Split a path into keys and list indices.

    Example:
        >>> _parse_path("model.layers[0].filters")
        ['model', 'layers', 0, 'filters']
    """
    path: list[str | int] = []
    for step in key.split("."):
        name, *brackets = step.split("[")
        path.append(name)
        for bracket in brackets:
            index = bracket.removesuffix("]")
            if index == bracket or not index.isdecimal():
                raise KeyError(f"{printable(key)}: expected a list index, such as layers[0]")
            path.append(int(index))
    return path


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _member_tables(table: Table) -> list[Table]:
    members = table.get("members")
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []


def _find_member(table: Table, path: Sequence[str | int], key: str) -> tuple[Table, list[str | int]]:
    """Return the member of a path `members.NAME.key` and the rest of the path. The name may contain dots."""
    table.setdefault("members", [{"name": DEFAULT_MEMBER}])
    members = {str(member.get("name")): member for member in _member_tables(table)}
    for end in range(len(path) - 1, 1, -1):
        if (name := ".".join(map(str, path[1:end]))) in members:
            return members[name], list(path[end:])
    name = str(path[1]) if len(path) > 1 else ""
    raise KeyError(f"{printable(key)}: no such member; {did_you_mean(name, list(members))}")


def _copy_shared_list(member: Table, shared: Table, path: Sequence[str | int]) -> None:
    """Copy a shared list to the member if the path leads into it."""
    list_path = path[: next((index for index, step in enumerate(path) if isinstance(step, int)), 0)]
    if list_path and not has_key(member, list_path) and has_key(shared, list_path):
        _set_key(member, list_path, deepcopy(_get(shared, list_path)), "")


def _drop_other_validation_keys(table: Table, path: Sequence[str | int]) -> None:
    """Remove other keys, such as `first`, if `data.validation.fraction` is set: the table may have only one kind."""
    if has_key(table, path[:-1]) and path[:-1] == ["data", "validation"] and path[-1] in VALIDATION_KINDS:
        validation = table["data"]["validation"]
        dropped = VALIDATION_KINDS if path[-1] == "fraction" else (*VALIDATION_KINDS, *RandomFraction.model_fields)
        for key in dropped if isinstance(validation, dict) else ():
            if key != path[-1]:
                validation.pop(key, None)


def _set_key(table: Any, path: Sequence[str | int], value: Any, key: str) -> None:
    for index, step in enumerate(path):
        if isinstance(step, int) and not _contains(table, step):
            found = f"is a list of {len(table)}, counted from 0" if isinstance(table, list) else "is not a list"
            raise KeyError(f"{printable(key)}: no index {step}, because {printable(path[index - 1])} {found}")
        if isinstance(step, str) and not isinstance(table, dict):
            raise KeyError(f"{printable(key)}: {printable(path[index - 1])} is not a table")
        if index == len(path) - 1:
            table[step] = value
        else:
            table = table[step] if isinstance(step, int) else table.setdefault(step, {})


def _get(table: Any, path: Sequence[str | int]) -> Any:
    return reduce(getitem, path, table)


def has_key(table: Any, path: Sequence[str | int]) -> bool:
    """Return whether a path exists in nested tables and lists."""
    for step in path:
        if not _contains(table, step):
            return False
        table = table[step]
    return True


def _contains(table: Any, step: str | int) -> bool:
    if isinstance(step, int):
        return isinstance(table, list) and step < len(table)
    return isinstance(table, dict) and step in table
