"""The results of `fmcli recipe list`, `recipe keys` and the summary of `recipe show`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmcli.recipe import Recipe
from fmcli.recipe.layers import Conv, LayerSpec
from fmcli.recipe.schema import Key, KeyTable
from fmcli.recipe.tracing import (
    LayerTrace,
    count_multiply_adds,
    count_parameters,
    pair,
    show_shape,
    walk_traces,
)
from fmcli.report.document import Document, show_value
from fmcli.report.sheet import Code, Row, Sheet

_MAX_WIDTH = 120  # characters, also in files and pipes, because descriptions are long


def recipes_document(descriptions: Mapping[str, str]) -> Document:
    """Return the names and descriptions of the shipped recipes."""
    records = [{"name": name, "description": description} for name, description in descriptions.items()]
    rows = [{"Recipe": Code(name), "Description": description} for name, description in descriptions.items()]
    return Document([Sheet(rows=rows)], {"recipes": records}, records)


def keys_document(tables: Sequence[KeyTable]) -> Document:
    """Return the type, default and meaning of each recipe key, one table of keys per TOML table."""
    sheets = [
        Sheet(
            title=_table_title(table),
            rows=[
                {"Key": Code(key.name), "Type": key.takes, "Default": _format_default(key), "Meaning": key.meaning}
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
    return Code(json.dumps(key.default, ensure_ascii=False))


def _table_title(table: KeyTable) -> str:
    name = f"[{table.path}] {table.choice}".rstrip()
    return f"{name}: {table.about}" if table.path else table.about


def summary_document(recipe: Recipe, traces: Mapping[str, Sequence[LayerTrace]]) -> Document:
    """Return the layers of each member's network with their output shapes, parameters and multiply-adds."""
    parameters = {member: count_parameters(layers) for member, layers in traces.items()}
    multiply_adds = {member: count_multiply_adds(layers) for member, layers in traces.items()}
    sheets = [
        Sheet(
            title=f"{member}: {parameters[member]:,} parameters, "
            f"{_abbreviate(multiply_adds[member])} multiply-adds (MACs) per image",
            rows=[_summary_row(path, trace) for path, trace in walk_traces(layers)],
        )
        for member, layers in traces.items()
    ]
    records = [
        {
            "member": member,
            "layer": path,
            "type": trace.layer.type,
            "detail": _describe_settings(trace.layer),
            "output_shape": trace.output_shape,
            "parameters": trace.parameters,
            "multiply_adds": trace.multiply_adds,
        }
        for member, layers in traces.items()
        for path, trace in walk_traces(layers)
    ]
    totals = {"parameters": parameters, "multiply_adds": multiply_adds}
    return Document(sheets, {"recipe": recipe.name, **totals, "layers": records}, records)


def _summary_row(path: str, trace: LayerTrace) -> Row:
    """Return a row of the summary. An inner layer is indented, and shows only the end of its path."""
    *outer, name, index = ["", *path.split(".")]
    label = f"{'  ' * len(outer)}{name}.{index}" if name else f"{index:>2}"
    return {
        "Layer": f"{label} {trace.layer.type} {_describe_settings(trace.layer)}".rstrip(),
        ">Output": show_shape(trace.output_shape),
        ">Parameters": trace.parameters,
        ">MACs": _abbreviate(trace.multiply_adds),
    }


def _describe_settings(layer: LayerSpec) -> str:
    """Return the values that differ from their defaults, such as `3×3, filters 32, same, no bias`."""
    settings = layer.model_dump(exclude_defaults=True, exclude={"type", "body", "shortcut", "n_classes"})
    words = []
    if isinstance(layer, Conv):
        words.append("×".join(map(str, pair(settings.pop("kernel_size")))))
    for key, value in settings.items():
        if key == "bias":
            words.append("no bias")
        elif key in ("padding", "activation", "function", "name"):
            words.append(value)
        else:
            words.append(f"{key.replace('_', ' ')} {_format_value(value)}")
    return ", ".join(words)


def _format_value(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else show_value(value)


def _abbreviate(count: int) -> str:
    """Return a number in thousands, millions or billions.

    Example:
        >>> _abbreviate(0), _abbreviate(225_792), _abbreviate(14_450_688)
        ('0', '225.8k', '14.5M')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
