"""Every key of a recipe, table by table: what it takes, its default, and what it does."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fmcli.recipe.schema import recipe_schema
from fmcli.recipe.specs import SHARED_TABLES

_Schema = Mapping[str, Any]
_LARGEST = 2**31  # a limit from here on says nothing that anybody would ask for
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a recipe.

    Args:
        name: As it is written.
        takes: What may stand behind it, in words.
        needed: Whether it has to be given.
        default: What stands for it where it is not given; None also where leaving it out has a meaning of its own.
        meaning: What it does; empty where its name says it.
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
        path: Where it stands, such as `optimizer` or `model.layers[]`.
        choice: Which of several that it may be, such as `name = "adam"`; empty where there is one.
        about: What it is.
        keys: Its keys, but for those of `choice`.
    """

    path: str
    choice: str
    about: str
    keys: tuple[Key, ...]


def recipe_keys() -> list[KeyTable]:
    """Return all tables that a recipe may have, each before those that stand in it."""
    schema = recipe_schema()
    definitions = schema["$defs"]
    properties = dict(schema["properties"])
    members = properties.pop("members")["items"]
    own = {key: value for key, value in members["properties"].items() if key not in SHARED_TABLES}
    top = {key: value for key, value in properties.items() if not list(_tables(value, definitions))}
    tables = [KeyTable("", "", "The recipe itself.", _keys(top, (), definitions))]
    for key, value in properties.items():
        tables += _walk(key, value, definitions)
    about = "A member; its own tables override those that all share."
    return [*tables, KeyTable("members[]", "", about, _keys(own, members["required"], definitions))]


def _walk(path: str, schema: _Schema, definitions: _Schema, outer: tuple[_Schema, ...] = ()) -> Iterator[KeyTable]:
    """Yield the tables that a key may hold, each with those in it, but for one that holds its like."""
    for table in _tables(schema, definitions):
        if any(table is one for one in outer):
            continue
        fixed = {key: value["const"] for key, value in table["properties"].items() if "const" in value}
        choice = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fixed.items())
        about = str(table.get("description", "")).partition("\n\n")[0]
        # Of shared tables the schema says nothing: members may give what is needed.
        needed = table.get("required", table["properties"] if path in SHARED_TABLES else ())
        yield KeyTable(path, choice, " ".join(about.split()), _keys(table["properties"], needed, definitions))
        for key, value in table["properties"].items():
            yield from _walk(f"{path}.{key}{_suffix(value)}", value, definitions, (*outer, table))


def _tables(schema: _Schema, definitions: _Schema) -> Iterator[_Schema]:
    """Yield the tables that a value may be, or a list or table of values may hold."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield schema
    for part in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, Mapping):
            yield from _tables(part, definitions)


def _suffix(schema: _Schema) -> str:
    """Return what stands for the place of a table in what holds it."""
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
    """Return in words what a schema allows."""
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
    words = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    for key, word in words.items():
        if key in schema and abs(schema[key]) < _LARGEST:
            yield f"{word} {schema[key]:g}"
