"""From TOML to a `Recipe` and back, reporting every problem at once."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from fmcli.errors import RecipeError, did_you_mean, printable
from fmcli.recipe.known import KNOWN_SOURCES, SourceFacts
from fmcli.recipe.layers import trace_members
from fmcli.recipe.problems import describe_problems, show_path
from fmcli.recipe.specs import (
    SHARED_TABLES,
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    Recipe,
    ReferenceSpec,
)

Table = dict[str, Any]
SomeSpec = TypeVar("SomeSpec", bound=BaseModel)
LARGEST_RECIPE = 1 << 20  # bytes; a recipe is a page of text
_TOP_LEVEL = ("name", "data", *SHARED_TABLES, "ensemble", "members", "reference")
_DEFAULT_MEMBER = "m1"


# --- finding and reading --------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that came with fmcli, by name."""
    package = Path(str(resources.files("fmcli")))
    # Inside the package once installed; beside it in a source checkout.
    folder = next((place for place in (package / "recipes", package.parent / "recipes") if place.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)} if folder else {}


def find_recipe(name: str) -> Path:
    """Return the file that `--recipe` means: a path, or the name of a shipped recipe.

    Raises:
        RecipeError: There is neither.
    """
    if name.endswith(".toml") or "/" in name or Path(name).is_file():
        path = Path(name)
        if path.is_dir():
            path = path / "recipe.toml"
        if not path.is_file():
            raise RecipeError(f"no recipe at {printable(name)}", hint="fmcli recipe list shows what is shipped")
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(
            f"no recipe named {printable(name)!r}; {did_you_mean(name, list(shipped))}",
            hint="fmcli recipe list; or give a path that ends in .toml",
        )
    return shipped[name]


def read_text(path: Path) -> str:
    """Return a recipe's text.

    Raises:
        RecipeError: It cannot be read, is not UTF-8, or is far too long for a recipe.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_RECIPE + 1)
        if len(content) > LARGEST_RECIPE:
            raise RecipeError(f"{printable(path)} is larger than {LARGEST_RECIPE} bytes: not a recipe")
        return content.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read {printable(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{printable(path)} is not UTF-8 text: byte {error.start}") from error


def describe(text: str) -> str:
    r"""Return a recipe's first comment line, which says what it is for (`#:schema` is for editors).

    Example:
        >>> describe("# Three kernel sizes, one vote.\n[data]")
        'Three kernel sizes, one vote.'
    """
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#:")), "")
    return first.lstrip("# ") if first.startswith("#") else ""


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        name: A path, or the name of a shipped recipe.
        overrides: `key=value` strings, see `apply_overrides`.

    Returns:
        The recipe with every default filled in.

    Raises:
        RecipeError: With every problem found.
    """
    path = find_recipe(name)
    text = read_text(path)
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(
            f"{printable(path)} is not valid TOML: {error}", hint='strings take quotes: name = "adam"'
        ) from error
    return resolve_recipe(apply_overrides(table, overrides), name=path.stem, description=describe(text))


# --- overriding -----------------------------------------------------------------------------------------


def apply_overrides(table: Table, overrides: Sequence[str]) -> Table:
    """Return a recipe's table with `key=value` strings laid over it.

    A value is read as TOML and, where that fails, as text. A shared key (`optimizer.lr`) also replaces what
    members say of it; `members.NAME.optimizer.lr` reaches one member alone.

    Args:
        table: As parsed from TOML.
        overrides: For instance `["optimizer.lr=3e-4", "members.m5.model.kernel_size=7"]`.

    Returns:
        A new table.

    Raises:
        RecipeError: An override has no `=`, or names a member or a table that is not there.

    Example:
        >>> apply_overrides({"trainer": {"epochs": 3}}, ["trainer.epochs=5", "optimizer.name=sgd"])
        {'trainer': {'epochs': 5}, 'optimizer': {'name': 'sgd'}}
    """
    result: Table = _copy(table)
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise RecipeError(
                f"--set {printable(override)}: expected key=value",
                hint="for instance --set optimizer.lr=3e-4",
            )
        value = _parse_value(text.strip())
        if path[0] == "members":
            member, path = _find_member(result, path, override)
            _set_key(member, path, value, override)
            continue
        _set_key(result, path, value, override)
        for member in _member_tables(result) if path[0] in SHARED_TABLES else ():
            if _has_key(member, path):
                _set_key(member, path, value, override)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _member_tables(table: Table) -> list[Table]:
    members = table.get("members")
    return [member for member in members if isinstance(member, dict)] if isinstance(members, list) else []


def _find_member(table: Table, path: Sequence[str], override: str) -> tuple[Table, list[str]]:
    """Return the member that `members.NAME.key` names (a name may hold dots), and the rest of the path."""
    table.setdefault("members", [{"name": _DEFAULT_MEMBER}])
    members = {str(member.get("name")): member for member in _member_tables(table)}
    for end in range(len(path) - 1, 1, -1):
        if (name := ".".join(path[1:end])) in members:
            return members[name], list(path[end:])
    wrong = path[1] if len(path) > 1 else ""
    raise RecipeError(f"--set {printable(override)}: no such member; {did_you_mean(wrong, list(members))}")


def _set_key(table: Table, path: Sequence[str], value: Any, override: str) -> None:
    *tables, last = path
    for step in tables:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {printable(override)}: {step} is a value, not a table")
    table[last] = value


def _has_key(table: Any, path: Sequence[str]) -> bool:
    for step in path:
        if not isinstance(table, dict) or step not in table:
            return False
        table = table[step]
    return True


# --- resolving ------------------------------------------------------------------------------------------


def resolve_recipe(table: Table, *, name: str, description: str = "") -> Recipe:
    """Return the recipe that a table stands for, every default filled in.

    Args:
        table: As parsed from TOML.
        name: What the run is called, unless the table says so itself.
        description: One line.

    Raises:
        RecipeError: With every problem found, each as `path: problem`.
    """
    problems = [
        f"{printable(key)}: unknown key; {did_you_mean(key, _TOP_LEVEL)}" for key in table if key not in _TOP_LEVEL
    ]
    title = table.get("name", name)
    if not isinstance(title, str) or title in ("", ".", "..") or "/" in title:
        problems.append(f"name: got {printable(repr(title))}; expected text that can name a folder")
    data = _validate(DataSpec, table, "data", problems, required=True)
    ensemble = _validate(EnsembleSpec, table, "ensemble", problems) or EnsembleSpec()
    reference = _validate(ReferenceSpec, table, "reference", problems)
    members = _resolve_members(table, problems)
    if data is not None:
        problems += _check_members(members, data)
        problems += _check_reference(reference, data)
    unique = list(dict.fromkeys(problems))
    if unique or data is None:
        count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
        raise RecipeError(
            f"recipe {printable(name)} has {count}:",
            problems=unique,
            hint="fmcli recipe schema prints all keys; fmcli recipe show quick is a recipe to compare with",
        )
    return Recipe(
        name=str(title),
        description=description,
        data=data,
        members=tuple(members),
        ensemble=ensemble,
        reference=reference,
    )


def _validate(
    spec: type[SomeSpec], table: Table, key: str, problems: list[str], *, required: bool = False
) -> SomeSpec | None:
    """Validate one table of the recipe, adding its problems to the list."""
    if key not in table:
        if required:
            problems.append(f"{key}: missing table")
        return None
    try:
        return spec.model_validate(table[key])
    except ValidationError as error:
        for path, problem in _merged(describe_problems(error, spec)):
            problems.append(f"{show_path((key, *path))}: {problem}")
        return None


def _resolve_members(table: Table, problems: list[str]) -> list[MemberSpec]:
    own_tables = table.get("members", [{"name": _DEFAULT_MEMBER}])
    if not isinstance(own_tables, list) or not own_tables or not all(isinstance(own, dict) for own in own_tables):
        problems.append("members: expected one or more [[members]] tables, each with a name")
        return []
    names = [own["name"] for own in own_tables if isinstance(own.get("name"), str)]
    folded = [name.casefold() for name in names]  # some file systems do not tell K3 from k3
    problems += [
        f"members: two are named {printable(name)!r}"
        for name in dict.fromkeys(names)
        if folded.count(name.casefold()) > 1
    ]
    resolved = (_resolve_member(table, own, index, problems) for index, own in enumerate(own_tables))
    return [member for member in resolved if member is not None]


def _resolve_member(table: Table, own: Table, index: int, problems: list[str]) -> MemberSpec | None:
    label = f"members.{own['name']}" if isinstance(own.get("name"), str) else f"members[{index}]"
    merged = {key: value for key, value in own.items() if key not in SHARED_TABLES}
    for key in SHARED_TABLES:
        if key in table or key in own:
            merged[key] = _overlay(key, table.get(key, {}), own.get(key, {}))
    try:
        return MemberSpec.model_validate(merged)
    except ValidationError as error:
        for path, problem in _merged(describe_problems(error, MemberSpec)):
            # Said once for all where the shared table says it; under the member's name where it does.
            shared = _is_shared(path, table, own, merged)
            problems.append(f"{show_path(path if shared else (label, *path))}: {problem}")
        return None


def _is_shared(path: Sequence[str], table: Table, own: Table, merged: Table) -> bool:
    """Tell whether what is wrong at a path is said by, or missing from, a shared table."""
    key = path[0]
    if key not in SHARED_TABLES:
        return False
    if key not in own or merged[key] is table.get(key):
        return True
    if key not in table or merged[key] is own[key]:
        return False
    first_list = next((place for place, step in enumerate(path) if "[" in step), len(path) - 1)
    return not _has_key(own, [step.split("[")[0] for step in path[: first_list + 1]])  # a list is taken whole


def _overlay(key: str, shared: Any, own: Any) -> Any:
    """Lay a member's table over the shared one, key by key; another family or name starts afresh."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own if isinstance(shared, dict) else shared  # the one that is wrong
    default = MemberSpec.model_fields[key].get_default(call_default_factory=True)
    for tag in ("family", "name"):
        if hasattr(default, tag):  # [optimizer] without a name is the default one
            shared = {tag: getattr(default, tag)} | shared
        if tag in own and own[tag] != shared.get(tag, own[tag]):
            return own
    return shared | own


def _merged(problems: Any) -> list[tuple[tuple[str, ...], str]]:
    """Join what pydantic says of one place once for each kind of value that would fit there."""
    by_path: dict[tuple[str, ...], list[str]] = {}
    for path, problem in problems:
        by_path.setdefault(path, []).append(problem)
    return [
        (
            path,
            " or ".join([texts[0], *(text.split("; ", 1)[-1].removeprefix("expected ") for text in texts[1:])]),
        )
        for path, texts in by_path.items()
    ]


def known_facts(data: DataSpec) -> SourceFacts | None:
    """Return image size and classes of a recipe's data, where the source's name alone tells them."""
    facts = KNOWN_SOURCES.get(data.source)
    return replace(facts, class_names=data.classes or facts.class_names) if facts else None


def _check_members(members: Sequence[MemberSpec], data: DataSpec) -> list[str]:
    """Return what members ask of the data that it cannot give."""
    facts = known_facts(data)
    problems = trace_members(members, facts)[1] if facts else []
    first = getattr(data.validation, "first", 0)
    if facts and facts.n_train is not None and first >= facts.n_train:
        problems.append(f"data.validation.first: got {first}; expected fewer than the {facts.n_train} training images")
    without_validation = data.validation is None and (data.resplit is None or data.resplit.validation == 0)
    return problems + [
        f"members.{member.name}.trainer.{key}: got {value!r}, which needs validation images; "
        "add validation = { first = 5000 } to [data]"
        for member in members
        for key, value in (("keep", member.trainer.keep), ("patience", member.trainer.patience))
        if value not in ("last", None) and without_validation
    ]


def _check_reference(reference: ReferenceSpec | None, data: DataSpec) -> list[str]:
    """Return the classes of published figures that the data does not have."""
    facts = known_facts(data)
    named = reference.test_recall if reference is not None and facts is not None else {}
    return [
        f"reference.test_recall.{show_path((name,))}: no such class; {did_you_mean(name, facts.class_names)}"
        for name in named
        if facts is not None and name not in facts.class_names
    ]


# --- writing --------------------------------------------------------------------------------------------


def dump_recipe(recipe: Recipe) -> str:
    """Return a resolved recipe as TOML that `load_recipe` reads back to the same value."""
    table = recipe.model_dump(exclude_none=True, exclude={"description"})
    return f"# {recipe.description}\n" + tomli_w.dumps(table)


def recipe_digest(*specs: BaseModel) -> str:
    """Return a SHA-256 over specs, whatever the order and spacing of the TOML they came from."""
    content = json.dumps([spec.model_dump(mode="json") for spec in specs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
