"""Turn validation errors of pydantic into lines with path, value and expected value."""

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmcli.errors import did_you_mean, printable
from fmcli.recipe.overrides import has_key

MAX_PROBLEMS = 100  # in one report; the time to write it is proportional to the square of this number
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list [ … ]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} value",
    "too_long": "at most {max_length} values",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, '_', '.' and '-' only, at most 64",
    "literal_error": "{expected}",
}


def describe_problems(error: ValidationError, spec: type[BaseModel], table: object) -> dict[tuple[str, ...], str]:
    """Return one problem for each path at which a table is not valid.

    If several types are allowed at a path, pydantic reports a problem for each type. These problems are merged.

    Args:
        error: The error that pydantic raised.
        spec: The class that validated the table.
        table: The table that was validated.

    Returns:
        Text of each problem by path, such as `unknown key; did you mean 'lr'?`.
    """
    errors = [(_find_path(details, table), details) for details in error.errors(include_url=False)[:MAX_PROBLEMS]]
    shown_paths = [show_path(path) for path, _ in errors]
    problems: dict[tuple[str, ...], str] = {}
    for (path, details), shown in zip(errors, shown_paths, strict=True):
        if any(other.startswith((f"{shown}.", f"{shown}[")) for other in shown_paths):
            continue  # a problem inside this table or list is reported instead
        text = _describe(details, spec)
        if path in problems:
            problems[path] += f" or {text.split('; ', 1)[-1].removeprefix('expected ')}"
        else:
            problems[path] = text
    return problems


def _describe(details: ErrorDetails, spec: type[BaseModel]) -> str:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return f"unknown key; {did_you_mean(details['loc'][-1], _valid_keys(spec, details['loc']))}"
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing key {context['discriminator']}"
    if kind == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in str(context["expected_tags"]).split(",")]
        return f"got {context['tag']!r} for {context['discriminator']}; {did_you_mean(context['tag'], choices)}"
    if kind == "literal_error" and isinstance(value, str):
        choices = [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        return f"got {_show(value)}; {did_you_mean(value, choices)}"
    if kind == "value_error":
        return str(context["error"])
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"got {_show(value)}; {details['msg']}"
    return f"got {_show(value)}; expected {expected.format(**context)}"


def _show(value: object, limit: int = 60) -> str:
    text = printable(repr(value) if not isinstance(value, bool) else str(value).lower())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _find_path(details: ErrorDetails, table: Any) -> tuple[str, ...]:
    """Return the path of a problem: its location without the tags and type names that pydantic adds for unions."""
    path: list[str] = []
    location = details["loc"]
    for index, step in enumerate(location):
        is_missing = details["type"] == "missing" and index == len(location) - 1
        if not is_missing and not has_key(table, [step]):
            continue
        if isinstance(step, int):
            path[-1] += f"[{step}]"
        else:
            path.append(step)
        table = None if is_missing else table[step]
    return tuple(path)


def _valid_keys(spec: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys of the table that contains the last key of a location."""
    specs = [spec]  # several for a union, until its tag is reached
    for step in location[:-1]:
        if len(specs) > 1:
            specs = [spec for spec in specs if _has_tag(spec, step)] or specs
        elif step in specs[0].model_fields:
            specs[0].model_rebuild()  # resolves references to types that are defined after the table
            specs = _specs_in(specs[0].model_fields[str(step)].annotation)
    return sorted(specs[0].model_fields)


def _has_tag(spec: type[BaseModel], tag: int | str) -> bool:
    return tag in (spec.__name__, *(field.default for field in spec.model_fields.values()))


def _specs_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the tables that a type allows, including those inside a list or table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for argument in get_args(annotation) for spec in _specs_in(argument)]


def show_path(path: tuple[str, ...]) -> str:
    """Return a path as the user types it.

    Example:
        >>> show_path(("model", "layers[2]", "filters"))
        'model.layers[2].filters'
    """
    return ".".join(printable(step) for step in path)
