"""The results of `fmcli recipe list`, `recipe keys` and the summary of `recipe show`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmcli.recipe import Recipe
from fmcli.recipe.layers import Conv, Dense, Layer
from fmcli.recipe.schema import Key, KeyTable
from fmcli.recipe.tracing import LayerTrace, count_parameters, show_shape
from fmcli.report.document import Document, Sheet

_MAX_WIDTH = 120  # characters, also in files and pipes, because descriptions are long


def recipes_document(descriptions: Mapping[str, str]) -> Document:
    """Return the names and descriptions of the shipped recipes."""
    records = [{"name": name, "description": description} for name, description in descriptions.items()]
    rows = [{"Recipe": name, "Description": description} for name, description in descriptions.items()]
    return Document([Sheet(rows=rows)], {"recipes": records}, records)


def keys_document(tables: Sequence[KeyTable]) -> Document:
    """Return the type, default and meaning of each recipe key, one table of keys per TOML table."""
    sheets = [
        Sheet(
            title=_table_title(table),
            rows=[
                {"Key": key.name, "Type": key.takes, "Default": _format_default(key), "Meaning": key.meaning}
                for key in table.keys
            ],
            max_width=_MAX_WIDTH,
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


def _format_default(key: Key) -> str:
    if key.default is None:
        return "required" if key.needed else ""
    return json.dumps(key.default, ensure_ascii=False)


def _table_title(table: KeyTable) -> str:
    name = f"[{table.path}] {table.choice}".rstrip()
    return f"{name}: {table.about}" if table.path else table.about


def summary_document(recipe: Recipe, traces: Mapping[str, Sequence[LayerTrace]]) -> Document:
    """Return the layers of each member's network with their output shapes and parameter counts."""
    totals = {member: count_parameters(layers) for member, layers in traces.items()}
    sheets = [
        Sheet(
            title=f"{member}: {totals[member]:,} parameters",
            rows=[
                {
                    ">#": index,
                    "Layer": trace.layer.type,
                    "Settings": _describe_settings(trace.layer),
                    ">Output": show_shape(trace.output_shape),
                    ">Parameters": trace.parameters,
                }
                for index, trace in enumerate(layers)
            ],
        )
        for member, layers in traces.items()
    ]
    records = [
        {
            "member": member,
            "layer": index,
            "type": trace.layer.type,
            "detail": _describe_settings(trace.layer),
            "output_shape": trace.output_shape,
            "parameters": trace.parameters,
        }
        for member, layers in traces.items()
        for index, trace in enumerate(layers)
    ]
    return Document(sheets, {"recipe": recipe.name, "parameters": totals, "layers": records}, records)


def _describe_settings(layer: Layer) -> str:
    settings = layer.model_dump(exclude_defaults=True, exclude={"type"})
    if isinstance(layer, Conv | Dense):
        settings.pop("bias", None)
    words = [f"{key.replace('_', ' ')} {_format_value(value)}" for key, value in settings.items()]
    return ", ".join(words) + (", no bias" if getattr(layer, "bias", True) is False else "")


def _format_value(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
