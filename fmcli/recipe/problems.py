"""Turn validation errors of pydantic into lines with the path, the value and the expected value."""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmcli.errors import did_you_mean, printable

MAX_PROBLEMS = 100  # in one report; the time to write it grows with the square of this number
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
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "letters, digits, '_', '.' and '-' only, at most 64",
    "literal_error": "{expected}",
}


def describe_problems(error: ValidationError, root: type[BaseModel]) -> dict[tuple[str, ...], str]:
    """Return the text of each problem of a failed validation, by its path.

    pydantic reports one problem for each kind of value that is allowed at a path; they are merged.

    Args:
        error: The error that pydantic raised.
        root: The model class that was validated.

    Returns:
        Problems such as `unknown key; did you mean 'lr'?`. The paths lack the tags that pydantic adds for unions.
    """
    errors = [(*_locate(root, details["loc"]), details) for details in error.errors(include_url=False)[:MAX_PROBLEMS]]
    shown_paths = [show_path(path) for path, _, _ in errors]
    problems: dict[tuple[str, ...], str] = {}
    for (path, table, details), shown in zip(errors, shown_paths, strict=True):
        if any(other.startswith((f"{shown}.", f"{shown}[")) for other in shown_paths):
            continue  # the problem inside this table or list is reported instead
        text = _describe(details, table)
        if path in problems:
            problems[path] += f" or {text.split('; ', 1)[-1].removeprefix('expected ')}"
        else:
            problems[path] = text
    return problems


def _describe(details: ErrorDetails, table: type[BaseModel] | None) -> str:
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        valid = sorted(table.model_fields) if table else []
        return f"unknown key; {did_you_mean(details['loc'][-1], valid)}" if valid else "unknown key"
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


def _locate(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[tuple[str, ...], Any]:
    """Return the path to a location in the recipe, and the table that contains its last key (None if unknown)."""
    path: list[str] = []
    here: Any = root
    holder: Any = root
    for step in location:
        here = _unwrap(here)
        if isinstance(step, int):
            if path:
                path[-1] += f"[{step}]"
            arguments = get_args(here)
            here = arguments[min(step, len(arguments) - 1)] if arguments else None
            if here is Ellipsis:
                here = arguments[0]
        elif _is_table(here):
            path.append(step)
            holder = here
            here = here.model_fields[step].annotation if step in here.model_fields else None
        elif get_origin(here) is dict:
            path.append(step)
            here = get_args(here)[1]
        elif (chosen := _choose(here, step)) is not None:
            here = holder = chosen
        elif not _is_type_name(step):
            path.append(step)
    return tuple(path), holder if _is_table(holder) else None


def _unwrap(annotation: Any) -> Any:
    """Return an annotation without `Annotated` and `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        rest = [choice for choice in get_args(annotation) if choice is not type(None)]
        if len(rest) == 1:
            return _unwrap(rest[0])
    return annotation


def _choose(annotation: Any, tag: str) -> Any:
    """Return the table in a union that has a tag, or None."""
    for choice in get_args(annotation):
        table = _unwrap(choice)
        if not _is_table(table):
            continue
        for field in table.model_fields.values():
            if get_origin(field.annotation) is Literal and tag in get_args(field.annotation):
                return table
        if tag in table.model_fields or tag == table.__name__:
            return table
    return None


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_type_name(step: str) -> bool:
    """Return whether a step is not a key but a type that pydantic tried in a union, such as `constrained-int`."""
    return step.startswith(("constrained", "tuple", "literal", "int", "float", "str", "bool", "function-"))


def show_path(path: tuple[str, ...]) -> str:
    """Return a path as a user types it.

    Example:
        >>> show_path(("model", "layers[2]", "filters"))
        'model.layers[2].filters'
    """
    return ".".join(printable(step) for step in path)
