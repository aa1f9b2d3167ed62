"""A JSON Schema of recipes, and a list of all keys, which is made from the schema."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from fmcli.recipe.data import DataSpec
from fmcli.recipe.recipe import SHARED_TABLES, EnsembleSpec, MemberSpec, MemberTable, ReferenceSpec
from fmcli.recipe.search import SearchSpec

Schema = Mapping[str, Any]
_NAME = "Name of the run and of the run folder. Default: the name of the recipe file without `.toml`."
_MEMBERS = (
    f"One member, or several copies. It may contain only these tables: {', '.join(SHARED_TABLES)}. Their values "
    "override the values of the shared tables. Without [[members]], the recipe has one member, `m1`."
)
_MIN_OMITTED_LIMIT = 2**31  # larger limits are not shown, because no recipe reaches them
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def recipe_schema() -> dict[str, Any]:
    """Return a JSON Schema for recipe files, for completion and checking in editors."""
    definitions: dict[str, Any] = {}

    def schema_of(kind: Any, *, partial: bool) -> dict[str, Any]:
        schema = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        inner = schema.pop("$defs", {})
        tables = {choice["$ref"].rpartition("/")[2] for choice in schema.get("anyOf", ())} if partial else set()
        definitions.update({key: _for_editors(value, partial=key in tables) for key, value in inner.items()})
        return dict(_for_editors(schema, partial=partial))

    # Shared tables have no required keys, because members may give the missing ones.
    shared = {key: schema_of(MemberSpec.model_fields[key].annotation, partial=True) for key in SHARED_TABLES}
    own = MemberTable.model_json_schema()
    member = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "properties": {key: own["properties"][key] for key in ("name", "copies")} | shared,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fmcli recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["data"],
        "properties": {
            "name": {"type": "string", "description": _NAME},
            "data": schema_of(DataSpec, partial=False),
            **shared,
            "ensemble": schema_of(EnsembleSpec, partial=False),
            "members": {"type": "array", "minItems": 1, "items": member, "description": _MEMBERS},
            "reference": schema_of(ReferenceSpec, partial=False),
            "search": schema_of(SearchSpec, partial=False),
        },
        "$defs": definitions,
    }


def _for_editors(schema: Any, *, partial: bool = False) -> Any:
    """Return a schema without `discriminator`, which editors do not support, and without required keys if partial."""
    if isinstance(schema, Mapping):
        result = {key: _for_editors(value, partial=partial) for key, value in schema.items()}
        if "oneOf" in result:
            result["anyOf"] = result.pop("oneOf")
            result.pop("discriminator", None)
        if partial:
            result.pop("required", None)
        return result
    return [_for_editors(item, partial=partial) for item in schema] if isinstance(schema, list) else schema


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a recipe.

    Args:
        name: Name of the key.
        takes: Allowed values, in words.
        needed: Whether the key is required.
        default: Default; None if the key is required, or if the description explains the default.
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
        choice: Key and value that select this kind of table, such as `name = "adam"`; empty if there is one kind.
        about: Description of the table.
        keys: Keys of the table, without the key in `choice`.
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
    members = properties.pop("members")
    own_keys = {key: members["items"]["properties"][key] for key in ("name", "copies")}
    tables = [KeyTable("", "", "Top-level keys", _keys({"name": properties["name"]}, (), definitions))]
    for key, value in properties.items():
        tables += _walk(key, value, definitions)
    return [*tables, KeyTable("members[]", "", members["description"], _keys(own_keys, ("name",), definitions))]


def _walk(path: str, schema: Schema, definitions: Schema, outer: tuple[Schema, ...] = ()) -> Iterator[KeyTable]:
    """Yield the tables of a key, each followed by the tables inside it. Do not repeat outer tables inside a table."""
    tables = [table for table in _tables(schema, definitions) if not any(table is one for one in outer)]
    for table in tables:
        fixed = {key: value["const"] for key, value in table["properties"].items() if "const" in value}
        choice = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fixed.items())
        # The schema of a shared table has no required keys. Here, every key without a default is required.
        needed = table.get("required", table["properties"] if path in SHARED_TABLES else ())
        yield KeyTable(path, choice, _text_of(table), _keys(table["properties"], needed, definitions))
        for key, value in table["properties"].items():
            yield from _walk(f"{path}.{key}{_suffix(value)}", value, definitions, (*outer, *tables))


def _tables(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """Yield the tables that a value may be, or that a list or table may contain."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield schema
    for part in (*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if isinstance(part, Mapping):
            yield from _tables(part, definitions)


def _text_of(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split())


def _suffix(schema: Schema) -> str:
    """Return the placeholder of an index or key in a path: `[]` for a list, `.KEY` for a table."""
    parts = [schema, *schema.get("anyOf", ())]
    if any(isinstance(part.get("additionalProperties"), Mapping) for part in parts):
        return ".KEY"
    return "[]" if any(part.get("type") == "array" for part in parts) else ""


def _keys(properties: Schema, needed: Collection[str], definitions: Schema) -> tuple[Key, ...]:
    return tuple(
        Key(
            name=name,
            takes=_takes(schema, definitions),
            needed="default" not in schema and name in needed,
            default=schema.get("default"),
            meaning=_text_of(schema),
        )
        for name, schema in properties.items()
        if "const" not in schema
    )


def _takes(schema: Schema, definitions: Schema) -> str:
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
            return f"{_TYPES[kind]} {' and '.join(_limits(schema))}".rstrip()
    return "any value"


def _limits(schema: Schema) -> Iterator[str]:
    symbols = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    for key, symbol in symbols.items():
        if key in schema and abs(schema[key]) < _MIN_OMITTED_LIMIT:
            yield f"{symbol} {schema[key]:g}"
