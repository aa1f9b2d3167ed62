"""A JSON Schema of recipe files, for completion and checking in editors."""

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter

from fmcli.recipe import layers, specs, training
from fmcli.recipe.families import kernel_cnn, sequential
from fmcli.recipe.specs import (
    SHARED_TABLES,
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    MemberTable,
    ReferenceSpec,
    SearchSpec,
)

Table = dict[str, Any]
_MODULES = (layers, kernel_cnn, sequential, specs, training)  # where the tables' classes stand


def recipe_schema() -> Table:
    """Return a JSON Schema for recipe files, for completion and checking in editors."""
    definitions: Table = {}

    def schema_of(kind: Any, *, partial: bool) -> Table:
        schema = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        inner = schema.pop("$defs", {})
        _describe({**inner, schema.get("title", ""): schema})
        tables = {choice["$ref"].rpartition("/")[2] for choice in schema.get("anyOf", ())} if partial else set()
        definitions.update({key: _for_editors(value, partial=key in tables) for key, value in inner.items()})
        return dict(_for_editors(schema, partial=partial))

    shared = {
        # A shared table may leave to the members what each of them gives.
        key: schema_of(MemberSpec.model_fields[key].annotation, partial=True)
        for key in SHARED_TABLES
    }
    own = MemberTable.model_json_schema()
    _describe({own["title"]: own})
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
            "name": {"type": "string"},
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
    """Return a schema in which tables of a union may share keys, and partial tables need none."""
    if isinstance(schema, Mapping):
        result = {key: _for_editors(value, partial=partial) for key, value in schema.items()}
        if "oneOf" in result:
            result["anyOf"] = result.pop("oneOf")
            result.pop("discriminator", None)
        if partial:
            result.pop("required", None)
        return result
    return [_for_editors(item, partial=partial) for item in schema] if isinstance(schema, list) else schema


@cache
def _texts() -> dict[tuple[str, str], str]:
    """Return what is said below each key of each class, by (class, key).

    pydantic can find this as it builds the classes, which would cost every command 30 ms.
    """
    texts = {}
    for node in (node for module in _MODULES for node in ast.parse(inspect.getsource(module)).body):
        if isinstance(node, ast.ClassDef):
            for statement, below in pairwise(node.body):
                match statement, below:
                    case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[node.name, key] = inspect.cleandoc(text)
    return texts


def _describe(tables: Mapping[str, Table]) -> None:
    """Add those texts to the schemas of classes, by name; a class without one for a key has its base's."""
    for name, table in tables.items():
        bases = [base.__name__ for base in _class_named(name).__mro__]
        for key, schema in table.get("properties", {}).items():
            text = next((_texts()[base, key] for base in bases if (base, key) in _texts()), None)
            if text is not None:
                schema.setdefault("description", text)


def _class_named(name: str) -> type:
    return next((vars(module)[name] for module in _MODULES if name in vars(module)), object)
