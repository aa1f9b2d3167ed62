"""Recipes and their networks as documents."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmcli.recipe import Recipe
from fmcli.recipe.keys import Key, KeyTable
from fmcli.recipe.layers import Conv, Dense, Layer
from fmcli.recipe.tracing import LayerTrace, count_parameters, show_shape
from fmcli.report.document import Document, Sheet


def recipes_document(rows: Sequence[tuple[str, str]]) -> Document:
    """Return the shipped recipes, (name, description)."""
    records = [{"name": name, "description": description} for name, description in rows]
    return Document([Sheet(columns=["Recipe", "What it is"], rows=rows)], {"recipes": records}, records)


def keys_document(tables: Sequence[KeyTable]) -> Document:
    """Return tables of keys, each with what it takes, its default and its meaning."""
    sheets = [
        Sheet(
            title=": ".join(filter(None, (_table_name(table), table.about))),
            columns=["Key", "Takes", "Default", "Meaning"],
            rows=[(key.name, key.takes, _show_default(key), key.meaning) for key in table.keys],
        )
        for table in tables
    ]
    records = [
        {
            "table": table.path,
            "choice": table.choice,
            "key": key.name,
            "takes": key.takes,
            "needed": key.needed,
            "default": key.default,
            "meaning": key.meaning,
        }
        for table in tables
        for key in table.keys
    ]
    return Document(sheets, {"keys": records}, records)


def _show_default(key: Key) -> str:
    if key.default is None:
        return "needed" if key.needed else ""
    return json.dumps(key.default, ensure_ascii=False)


def _table_name(table: KeyTable) -> str:
    return " ".join(filter(None, (f"[{table.path}]" if table.path else "", table.choice)))


def summary_document(recipe: Recipe, traces: Mapping[str, Sequence[LayerTrace]]) -> Document:
    """Return each member's network, layer by layer."""
    sheets, records = [], []
    for member, layers in traces.items():
        rows = [
            {
                "member": member,
                "layer": place,
                "type": trace.layer.type,
                "detail": _detail(trace.layer),
                "output_shape": list(trace.output_shape),
                "parameters": trace.parameters,
            }
            for place, trace in enumerate(layers)
        ]
        records += rows
        sheets.append(
            Sheet(
                title=f"{member}: {count_parameters(layers):,} parameters",
                columns=[">#", "Layer", "Detail", ">Output", ">Parameters"],
                rows=[
                    [
                        str(row["layer"]),
                        str(row["type"]),
                        str(row["detail"]),
                        show_shape(trace.output_shape),
                        f"{trace.parameters:,}",
                    ]
                    for row, trace in zip(rows, layers, strict=True)
                ],
            )
        )
    totals = {member: count_parameters(layers) for member, layers in traces.items()}
    return Document(sheets, {"recipe": recipe.name, "parameters": totals, "layers": records}, records)


def _detail(layer: Layer) -> str:
    given = layer.model_dump(exclude_defaults=True, exclude={"type"})
    if isinstance(layer, Conv | Dense):
        given.pop("bias", None)
    words = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in given.items()]
    return ", ".join(words) + (", no bias" if getattr(layer, "bias", True) is False else "")


def _value(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
