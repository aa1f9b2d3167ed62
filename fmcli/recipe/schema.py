"""A JSON Schema of recipe files, for completion and checking in editors."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from fmcli.recipe.data import DataSpec
from fmcli.recipe.recipe import SHARED_TABLES, EnsembleSpec, MemberSpec, MemberTable, ReferenceSpec
from fmcli.recipe.search import SearchSpec

Table = dict[str, Any]
_NAME = "Name of the run and of its folder. Default: the name of the recipe's file."


def recipe_schema() -> Table:
    """Return a JSON Schema for recipe files, for completion and checking in editors."""
    definitions: Table = {}

    def schema_of(kind: Any, *, partial: bool) -> Table:
        schema = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        inner = schema.pop("$defs", {})
        tables = {choice["$ref"].rpartition("/")[2] for choice in schema.get("anyOf", ())} if partial else set()
        definitions.update({key: _for_editors(value, partial=key in tables) for key, value in inner.items()})
        return dict(_for_editors(schema, partial=partial))

    shared = {
        # Members may give the keys that a shared table lacks.
        key: schema_of(MemberSpec.model_fields[key].annotation, partial=True)
        for key in SHARED_TABLES
    }
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
            "members": {"type": "array", "minItems": 1, "items": member},
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
