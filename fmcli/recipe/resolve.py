"""From a table to a `Recipe`: members filled in, everything checked, every problem reported at once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fmcli.errors import RecipeError, did_you_mean, printable
from fmcli.recipe.data import DataSpec
from fmcli.recipe.facts import KNOWN_SOURCES, SourceFacts
from fmcli.recipe.overrides import DEFAULT_MEMBER, Table, apply_overrides, has_key, set_values, value_at
from fmcli.recipe.problems import MAX_PROBLEMS, describe_problems, show_path
from fmcli.recipe.recipe import (
    MAX_MEMBERS,
    SHARED_TABLES,
    EnsembleSpec,
    MemberSpec,
    MemberTable,
    Recipe,
    ReferenceSpec,
    name_copies,
)
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.recipe.search import ChoiceSpace, RangeSpace, SearchSpec, Space
from fmcli.recipe.tracing import trace_members

SomeSpec = TypeVar("SomeSpec", bound=BaseModel)
MAX_TRIED_VALUES = 5000  # values of a search, for each member
_TOP_LEVEL = ("name", "data", *SHARED_TABLES, "ensemble", "members", "reference", "search")


def resolve_recipe(table: Table, *, name: str, description: str = "") -> Recipe:
    """Return the recipe that a table stands for, every default filled in.

    Args:
        table: As parsed from TOML.
        name: What the run is called, unless the table says so itself.
        description: One line.

    Raises:
        RecipeError: With every problem found, each as `path: problem`.
    """
    unknown = [key for key in table if key not in _TOP_LEVEL][:MAX_PROBLEMS]
    problems = [f"{printable(key)}: unknown key; {did_you_mean(key, _TOP_LEVEL)}" for key in unknown]
    title = table.get("name", name)
    if not isinstance(title, str) or title in ("", ".", "..") or set(title) & set("/\\\0"):
        problems.append(f"name: got {printable(repr(title))}; expected text that can name a folder")
    data = _validate(DataSpec, table, "data", problems, required=True)
    ensemble = _validate(EnsembleSpec, table, "ensemble", problems) or EnsembleSpec()
    reference = _validate(ReferenceSpec, table, "reference", problems)
    search = _validate(SearchSpec, table, "search", problems)
    members = _resolve_members(table, problems)
    problems += _check_cycles(members, search)
    if data is not None:
        problems += _check_members(members, data)
        problems += _check_reference(reference, data)
    if search is not None and not problems:
        problems += _check_space(table, search, members)
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
        members=tuple(copy for member in members for copy in member.expand()),
        ensemble=ensemble,
        reference=reference,
        search=search,
    )


def resolve_data(spec: DataSpec, overrides: Sequence[str]) -> DataSpec:
    """Return which images are meant, `--set data.size=[32,32]` and the like laid over it.

    Raises:
        RecipeError: An override does not fit, or is of another table.
    """
    table = apply_overrides({"data": spec.model_dump(mode="json", exclude_none=True)}, overrides)
    problems = [f"{printable(key)}: expected data, as only images are looked at" for key in table if key != "data"]
    data = _validate(DataSpec, table, "data", problems)
    if data is None or problems:
        raise RecipeError("--set has a problem:", problems=problems, hint="for instance --set 'data.size=[32,32]'")
    return data


def _check_space(table: Table, search: SearchSpec, members: Sequence[MemberTable]) -> list[str]:
    """Return what is wrong with a search: each key's outermost values are tried, one key at a time."""
    values = sum(len(extremes(space)) for space in search.space.values())
    copies = sum(member.copies for member in members)
    if values * copies > MAX_TRIED_VALUES:
        return [f"search.space: got {values} values for {copies} members; expected at most {MAX_TRIED_VALUES} in all"]
    problems = []
    untuned = resolve_recipe(trial_table(table, {}), name="untuned")
    for key, space in search.space.items():
        path = f'search.space."{printable(key)}"'
        if key.endswith(("trainer.keep", "trainer.patience")) or (search.epochs and key.endswith("trainer.epochs")):
            problems.append(f"{path}: a search sets this itself, so that it would be drawn for nothing")
            continue
        if key.split(".")[0] not in (*SHARED_TABLES, "members") and key != "data.normalize":
            tables = ", ".join((*SHARED_TABLES, "members.NAME"))
            problems.append(f"{path}: expected a value of {tables}, or data.normalize")
            continue
        for value in extremes(space):
            try:
                tried = resolve_recipe(trial_table(table, {key: value}), name="trial")
            except KeyError as error:
                problems.append(f"{path}: {error.args[0]}")
            except RecipeError as error:
                problems += [f"{path} = {printable(value)}: {problem}" for problem in error.problems]
            else:
                problems += [
                    f"{path} = {printable(value)}: {problem}" for problem in _check_cycles(tried.members, search)
                ]
                if isinstance(value_at(untuned, key), float) and isinstance(space, RangeSpace) and space.is_whole:
                    problems.append(f"{path}: would draw whole numbers alone; write low = {space.low}.0")
    return list(dict.fromkeys(problems))


def extremes(space: Space) -> tuple[Any, ...]:
    """Return every choice, or both ends of a range."""
    return space.choice if isinstance(space, ChoiceSpace) else (space.low, space.high)


def trial_table(table: Table, values: Mapping[str, Any]) -> Table:
    """Return a recipe's table with the values of a trial, and without its search.

    Raises:
        KeyError: See `set_values`.
    """
    return set_values({key: value for key, value in table.items() if key != "search"}, values)


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


def _resolve_members(table: Table, problems: list[str]) -> list[MemberTable]:
    own_tables = table.get("members", [{"name": DEFAULT_MEMBER}])
    if not isinstance(own_tables, list) or not own_tables or not all(isinstance(own, dict) for own in own_tables):
        problems.append("members: expected one or more [[members]] tables, each with a name")
        return []
    names = list(islice((name for own in own_tables for name in _names_of(own)), MAX_MEMBERS + 1))
    if max(len(names), len(own_tables)) > MAX_MEMBERS:
        problems.append(f"members: there are more than {MAX_MEMBERS}, the most for a recipe")
        return []
    times = Counter(name.casefold() for name in names)  # some file systems do not tell K3 from k3
    problems += [
        f"members: two are named {printable(name)!r}" for name in dict.fromkeys(names) if times[name.casefold()] > 1
    ]
    resolved = []
    for index, own in enumerate(own_tables):
        if len(problems) < MAX_PROBLEMS:
            resolved.append(_resolve_member(table, own, index, problems))
    return [member for member in resolved if member is not None]


def _names_of(own: Table) -> list[str]:
    """Return what the members of a `[[members]]` table are called, whatever else is wrong with it."""
    name, copies = own.get("name"), own.get("copies", 1)
    if not isinstance(name, str):
        return []
    return name_copies(name, copies) if isinstance(copies, int) and 0 < copies <= MAX_MEMBERS else [name]


def _resolve_member(table: Table, own: Table, index: int, problems: list[str]) -> MemberTable | None:
    label = f"members.{own['name']}" if isinstance(own.get("name"), str) else f"members[{index}]"
    merged = {key: value for key, value in own.items() if key not in SHARED_TABLES}
    for key in SHARED_TABLES:
        if key in table or key in own:
            merged[key] = _overlay(key, table.get(key, {}), own.get(key, {}))
    try:
        return MemberTable.model_validate(merged)
    except ValidationError as error:
        for path, problem in _merged(describe_problems(error, MemberTable)):
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
    return not has_key(own, [step.split("[")[0] for step in path[: first_list + 1]])  # a list is taken whole


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
    return problems + [
        f"members.{member.name}.trainer.{key}: got {value!r}, which needs validation images; "
        "add validation = { first = 5000 } to [data]"
        for member in members
        for key, value in (("keep", member.trainer.keep), ("patience", member.trainer.patience))
        if value not in ("last", "snapshots", None) and not data.validates
    ]


def _check_cycles(members: Sequence[MemberSpec], search: SearchSpec | None) -> list[str]:
    """Return what members ask of cycles that their schedules do not have, or that are not of whole epochs."""
    problems = []
    for member in members:
        epochs = {f"members.{member.name}.trainer.epochs": member.trainer.epochs}
        if search is not None and search.epochs is not None:
            epochs["search.epochs"] = search.epochs
        if isinstance(member.schedule, CyclicSchedule):
            cycles = member.schedule.cycles
            problems += [
                f"{path}: got {count}; expected a multiple of the schedule's {cycles} cycles"
                for path, count in epochs.items()
                if count % cycles
            ]
        elif member.trainer.keep == "snapshots":
            problems.append(
                f"members.{member.name}.trainer.keep: got 'snapshots', which needs a cyclic schedule; "
                'set name = "cyclic" and cycles = … in [schedule]'
            )
    return problems


def _check_reference(reference: ReferenceSpec | None, data: DataSpec) -> list[str]:
    """Return the classes of published figures that the data does not have."""
    facts = known_facts(data)
    only_validation = reference is not None and reference.test_accuracy is None
    if reference is not None and only_validation and reference.validation_accuracy is not None and not data.validates:
        return [
            "reference.validation_accuracy: nothing to compare it with, since no validation images are set aside; "
            "add validation = { first = 5000 } to [data]"
        ]
    named = reference.test_recall if reference is not None and facts is not None else {}
    return [
        f"reference.test_recall.{show_path((name,))}: no such class; {did_you_mean(name, facts.class_names)}"
        for name in islice(named, MAX_PROBLEMS)
        if facts is not None and name not in facts.class_names
    ]
