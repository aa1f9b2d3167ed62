"""List every key of a recipe by table, with its allowed values, default and meaning."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmcli.recipe.recipe import SHARED_TABLES
from fmcli.recipe.schema import recipe_schema

_Schema = Mapping[str, Any]
_MIN_OMITTED_LIMIT = 2**31  # larger limits are not shown, since no recipe reaches them
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a recipe.

    Args:
        name: The key.
        takes: Allowed values, in words.
        needed: Whether the key is required.
        default: Value if the key is missing; None if there is none, or if a missing key has another meaning.
        meaning: Description of the key.
    """

    name: str
    takes: str
    needed: bool
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class KeyTable:
    """A table of a recipe.

    Args:
        path: Path in the recipe, such as `optimizer` or `model.layers[]`.
        choice: The key that selects this kind of table, such as `name = "adam"`; empty if there is one kind.
        about: Description of the table.
        keys: Its keys, without that of `choice`.
    """

    path: str
    choice: str
    about: str
    keys: tuple[Key, ...]


def recipe_keys() -> list[KeyTable]:
    """Return all tables that a recipe may contain, each before the tables inside it."""
    schema = recipe_schema()
    definitions = schema["$defs"]
    properties = dict(schema["properties"])
    members = properties.pop("members")["items"]
    own_keys = {key: value for key, value in members["properties"].items() if key not in SHARED_TABLES}
    top_keys = {key: value for key, value in properties.items() if not list(_tables(value, definitions))}
    tables = [KeyTable("", "", "The recipe itself.", _keys(top_keys, (), definitions))]
    for key, value in properties.items():
        tables += _walk(key, value, definitions)
    about = "A member. It may contain the tables above, whose values override the shared ones."
    return [*tables, KeyTable("members[]", "", about, _keys(own_keys, members["required"], definitions))]


def _walk(path: str, schema: _Schema, definitions: _Schema, outer: tuple[_Schema, ...] = ()) -> Iterator[KeyTable]:
    """Yield the tables that a key may contain, each followed by the tables inside it; follow recursive tables once."""
    for table in _tables(schema, definitions):
        if any(table is outer_table for outer_table in outer):
            continue
        fixed = {key: value["const"] for key, value in table["properties"].items() if "const" in value}
        choice = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fixed.items())
        about = str(table.get("description", "")).partition("\n\n")[0]
        # The schema lists no required keys of shared tables, since members may give them.
        needed = table.get("required", table["properties"] if path in SHARED_TABLES else ())
        yield KeyTable(path, choice, " ".join(about.split()), _keys(table["properties"], needed, definitions))
        for key, value in table["properties"].items():
            yield from _walk(f"{path}.{key}{_suffix(value)}", value, definitions, (*outer, table))


def _tables(schema: _Schema, definitions: _Schema) -> Iterator[_Schema]:
    """Yield the tables that a value may be, or that a list or table of values may contain."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield schema
    for part in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, Mapping):
            yield from _tables(part, definitions)


def _suffix(schema: _Schema) -> str:
    """Return the placeholder of an index or key in a path: `[]` for a list, `.KEY` for a table."""
    parts = [schema, *schema.get("anyOf", ())]
    if any(isinstance(part.get("additionalProperties"), Mapping) for part in parts):
        return ".KEY"
    return "[]" if any(part.get("type") == "array" for part in parts) else ""


def _keys(properties: _Schema, needed: Collection[str], definitions: _Schema) -> tuple[Key, ...]:
    return tuple(
        Key(
            name=name,
            takes=_takes(schema, definitions),
            needed="default" not in schema and name in needed,
            default=schema.get("default"),
            meaning=" ".join(str(schema.get("description", "")).split()),
        )
        for name, schema in properties.items()
        if "const" not in schema
    )


def _takes(schema: _Schema, definitions: _Schema) -> str:
    """Return the values that a schema allows, in words."""
    if "$ref" in schema:
        return _takes(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        kinds = dict.fromkeys(_takes(part, definitions) for part in schema["anyOf"] if part.get("type") != "null")
        return " or ".join(kinds)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "object":
            return "table"
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_takes(part, definitions) for part in schema['prefixItems'])}]"
        case "array":
            return f"list of: {_takes(schema.get('items', {}), definitions)}"
        case str(kind):
            return f"{_TYPES[kind]} {', '.join(_limits(schema))}".rstrip()
    return "any value"


def _limits(schema: _Schema) -> Iterator[str]:
    symbols = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    for key, symbol in symbols.items():
        if key in schema and abs(schema[key]) < _MIN_OMITTED_LIMIT:
            yield f"{symbol} {schema[key]:g}"
