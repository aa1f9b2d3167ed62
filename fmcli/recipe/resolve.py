"""Turn a TOML table into a `Recipe`: fill in members and defaults, and report all problems together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fmcli.choices import BUILT_IN_SOURCES
from fmcli.errors import RecipeError, Remedy, did_you_mean, printable
from fmcli.recipe.data import DataSpec, known_facts
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
MAX_TRIED_VALUES = 5000  # number of values of a search, times the number of members
_TOP_LEVEL = ("name", "data", *SHARED_TABLES, "ensemble", "members", "reference", "search")


def resolve_recipe(table: Table, *, name: str, description: str = "") -> Recipe:
    """Return the recipe of a table, with every default filled in.

    Args:
        table: The table as parsed from TOML.
        name: Name of the run if the table does not contain one.
        description: Description of the recipe in one line.

    Raises:
        RecipeError: The table has problems. The error lists all of them as `path: problem`.
    """
    unknown = [key for key in table if key not in _TOP_LEVEL][:MAX_PROBLEMS]
    problems = [f"{printable(key)}: unknown key; {did_you_mean(key, _TOP_LEVEL)}" for key in unknown]
    title = table.get("name", name)
    if not isinstance(title, str) or title in ("", ".", "..") or set(title) & set("/\\\0"):
        problems.append(f"name: got {printable(repr(title))}; expected text that is valid as the name of a folder")
    data = _validate(DataSpec, {"data": {}} | table, "data", problems)
    ensemble = _validate(EnsembleSpec, table, "ensemble", problems) or EnsembleSpec()
    reference = _validate(ReferenceSpec, table, "reference", problems)
    search = _validate(SearchSpec, table, "search", problems)
    members = _resolve_members(table, problems)
    problems += _check_cycles(members, search)
    if data is not None:
        problems += _check_built_in_source(data)
        problems += _check_members(members, data)
        problems += _check_reference(reference, data)
    if search is not None and not problems:
        problems += _check_search(table, search, members)
    unique = list(dict.fromkeys(problems))
    if unique or data is None:
        count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
        raise RecipeError(
            f"recipe {printable(name)} has {count}:",
            problems=unique,
            hint="to list all keys: fmcli recipe keys; to print an example: fmcli recipe show quick",
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
    """Return a `[data]` table after applying overrides such as `data.size=[32,32]`.

    Raises:
        RecipeError: An override is not valid, or changes another table.
    """
    table = apply_overrides({"data": spec.model_dump(mode="json", exclude_none=True)}, overrides)
    problems = [
        f"{printable(key)}: expected a key of data, because only images are read" for key in table if key != "data"
    ]
    data = _validate(DataSpec, table, "data", problems)
    if data is not None:
        problems += _check_built_in_source(data)
    if data is None or problems:
        raise RecipeError(
            "an override has a problem:", problems=problems, remedies=[Remedy("set", "'data.size=[32,32]'")]
        )
    return data


def _check_built_in_source(data: DataSpec) -> list[str]:
    """Return the numbers in `[data]` that do not fit a built-in source, whose images are known without reading them."""
    facts = BUILT_IN_SOURCES.get(data.source)
    if facts is None:
        return []
    problems = []
    n_classes, first = len(facts.class_names), getattr(data.validation, "first", 0)
    if facts.n_train is not None and first >= facts.n_train:
        problems.append(f"data.validation.first: got {first}; expected fewer than the {facts.n_train} training images")
    if data.classes and len(data.classes) != n_classes:
        problems.append(f"data.classes: got {len(data.classes)} names; expected {n_classes}, one per class")
    return problems


def _check_members(members: Sequence[MemberSpec], data: DataSpec) -> list[str]:
    """Return the problems of networks that are impossible and of settings that do not fit the data."""
    facts = known_facts(data)
    problems = trace_members(members, facts)[1] if facts else []
    return problems + [
        f"members.{member.name}.trainer.{key}: got {value!r}, which needs validation images; "
        "add validation = { first = 5000 } to [data]"
        for member in members
        for key, value in (("keep", member.trainer.keep), ("patience", member.trainer.patience))
        if value not in ("last", "snapshots", None) and not data.validates
    ]


def _check_cycles(members: Sequence[MemberSpec], search: SearchSpec | None) -> list[str]:
    """Return the problems of cyclic schedules and snapshots.

    The number of epochs must be a multiple of the number of cycles, and snapshots need a cyclic schedule.
    """
    problems = []
    for member in members:
        epochs = {f"members.{member.name}.trainer.epochs": member.trainer.epochs}
        if search is not None and search.epochs is not None:
            epochs["search.epochs"] = search.epochs
        if isinstance(member.schedule, CyclicSchedule):
            cycles = member.schedule.cycles
            problems += [
                f"{path}: got {count}; expected a multiple of schedule.cycles = {cycles}"
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
    """Return the problems of published scores: no validation images, or an unknown class."""
    if reference is None:
        return []
    if reference.test_accuracy is None and reference.validation_accuracy is not None and not data.validates:
        return [
            "reference.validation_accuracy: needs validation images; add validation = { first = 5000 } to [data], or "
            "give test_accuracy"
        ]
    facts = known_facts(data)
    if facts is None:
        return []
    return [
        f"reference.test_recall.{show_path((name,))}: no such class; {did_you_mean(name, facts.class_names)}"
        for name in islice(reference.test_recall, MAX_PROBLEMS)
        if name not in facts.class_names
    ]


def _check_search(table: Table, search: SearchSpec, members: Sequence[MemberTable]) -> list[str]:
    """Return the problems of a search space by resolving the recipe with the extreme values of each key."""
    values = sum(len(_extreme_values(space)) for space in search.space.values())
    copies = sum(member.copies for member in members)
    if values * copies > MAX_TRIED_VALUES:
        return [f"search.space: got {values} values × {copies} members; the limit of the product is {MAX_TRIED_VALUES}"]
    untuned = resolve_recipe(trial_table(table, {}), name="untuned")
    problems = []
    for key, space in search.space.items():
        path = f'search.space."{printable(key)}"'
        if key.endswith(("trainer.keep", "trainer.patience")) or (search.epochs and key.endswith("trainer.epochs")):
            problems.append(f"{path}: the search sets this key itself; remove it from the space")
        elif key.split(".")[0] not in (*SHARED_TABLES, "members") and key != "data.normalize":
            tables = ", ".join((*SHARED_TABLES, "members.NAME"))
            problems.append(f"{path}: expected a key of {tables}, or data.normalize")
        else:
            found = [line for value in _extreme_values(space) for line in _check_trial(table, search, key, value)]
            is_whole = isinstance(space, RangeSpace) and space.is_whole
            if is_whole and not found and isinstance(value_at(untuned, key), float):
                low = _extreme_values(space)[0]
                found = [f"only whole numbers would be drawn; to draw fractions, write low = {low}.0"]
            problems += [f"{path}: {line}" for line in found]
    return list(dict.fromkeys(problems))


def _check_trial(table: Table, search: SearchSpec, key: str, value: Any) -> list[str]:
    """Return the problems of the recipe with one value of the search space."""
    try:
        trial = resolve_recipe(trial_table(table, {key: value}), name="trial")
        problems: Sequence[str] = _check_cycles(trial.members, search)
    except KeyError as error:
        return [str(error.args[0])]
    except RecipeError as error:
        problems = error.problems
    return [f"with {printable(value)}, {problem}" for problem in problems]


def _extreme_values(space: Space) -> tuple[Any, ...]:
    """Return all values of a choice, or the smallest and the largest value of a range."""
    return space.choice if isinstance(space, ChoiceSpace) else (space.low, space.high)


def trial_table(table: Table, values: Mapping[str, Any]) -> Table:
    """Return a recipe's table with the values of a trial and without the table `[search]`.

    Raises:
        KeyError: See `set_values`.
    """
    return set_values({key: value for key, value in table.items() if key != "search"}, values)


def _validate(spec: type[SomeSpec], table: Table, key: str, problems: list[str]) -> SomeSpec | None:
    """Return a validated table. Return None if it is missing, or if it has problems; append these to the list."""
    if key not in table:
        return None
    try:
        return spec.model_validate(table[key])
    except ValidationError as error:
        for path, problem in describe_problems(error, spec, table[key]).items():
            problems.append(f"{show_path((key, *path))}: {problem}")
        return None


def _resolve_members(table: Table, problems: list[str]) -> list[MemberTable]:
    own_tables = table.get("members", [{"name": DEFAULT_MEMBER}])
    if not isinstance(own_tables, list) or not own_tables or not all(isinstance(own, dict) for own in own_tables):
        problems.append("members: expected at least one [[members]] table, each with a name")
        return []
    names = list(islice((name for own in own_tables for name in _member_names(own)), MAX_MEMBERS + 1))
    if max(len(names), len(own_tables)) > MAX_MEMBERS:
        problems.append(f"members: expected at most {MAX_MEMBERS} members, including copies")
        return []
    counts = Counter(name.casefold() for name in names)  # K3 and k3 are the same folder on some file systems
    problems += [
        f"members: {counts[name]} members are named {printable(name)!r} (upper and lower case count as equal)"
        for name in counts
        if counts[name] > 1
    ]
    resolved = []
    for index, own in enumerate(own_tables):
        if len(problems) < MAX_PROBLEMS:
            resolved.append(_resolve_member(table, own, index, problems))
    return [member for member in resolved if member is not None]


def _member_names(own: Table) -> list[str]:
    """Return the names of all copies of a `[[members]]` table that is not validated yet."""
    name, copies = own.get("name"), own.get("copies", 1)
    if not isinstance(name, str):
        return []
    return name_copies(name, copies) if isinstance(copies, int) and 0 < copies <= MAX_MEMBERS else [name]


def _resolve_member(table: Table, own: Table, index: int, problems: list[str]) -> MemberTable | None:
    label = f"members.{own['name']}" if isinstance(own.get("name"), str) else f"members[{index}]"
    merged = {key: value for key, value in own.items() if key not in SHARED_TABLES}
    for key in SHARED_TABLES:
        if key in table or key in own:
            merged[key] = _merge_tables(key, table.get(key, {}), own.get(key, {}))
    try:
        return MemberTable.model_validate(merged)
    except ValidationError as error:
        for path, problem in describe_problems(error, MemberTable, merged).items():
            # A problem in a shared table has the same path for every member, so that it is reported once.
            is_shared = _is_shared(path, table, own, merged)
            problems.append(f"{show_path(path if is_shared else (label, *path))}: {problem}")
        return None


def _is_shared(path: Sequence[str], table: Table, own: Table, merged: Table) -> bool:
    """Return whether a wrong value is in a shared table, or a missing value can be added there."""
    key = path[0]
    if key not in SHARED_TABLES:
        return False
    if key not in own or merged[key] is table.get(key):
        return True
    if key not in table or merged[key] is own[key]:
        return False
    # A member's list replaces the shared list as a whole, so the path is compared up to the first list.
    first_list = next((index for index, step in enumerate(path) if "[" in step), len(path) - 1)
    return not has_key(own, [step.split("[")[0] for step in path[: first_list + 1]])


def _merge_tables(key: str, shared: Any, own: Any) -> Any:
    """Merge a table of a member into the shared table, unless they have different families or names."""
    if not isinstance(shared, dict) or not isinstance(own, dict):
        return own if isinstance(shared, dict) else shared  # validation then reports which one is not a table
    default = MemberSpec.model_fields[key].get_default(call_default_factory=True)
    tag = "family" if key == "model" else "name"
    if hasattr(default, tag):  # without a name, [optimizer] is the default optimizer
        shared = {tag: getattr(default, tag)} | shared
    if tag in own and own[tag] != shared.get(tag, own[tag]):
        return own
    return shared | own
