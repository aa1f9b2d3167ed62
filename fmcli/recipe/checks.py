"""Checks of values that are valid alone but not together."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from fmcli.errors import did_you_mean
from fmcli.recipe.data import DataSpec
from fmcli.recipe.facts import KNOWN_SOURCES, SourceFacts
from fmcli.recipe.problems import MAX_PROBLEMS, show_path
from fmcli.recipe.recipe import MemberSpec, ReferenceSpec
from fmcli.recipe.schedule import CyclicSchedule
from fmcli.recipe.search import SearchSpec
from fmcli.recipe.tracing import trace_members


def known_facts(data: DataSpec) -> SourceFacts | None:
    """Return image size and classes of a built-in source; None for other sources, whose files must be read."""
    facts = KNOWN_SOURCES.get(data.source)
    return replace(facts, class_names=data.classes or facts.class_names) if facts else None


def check_members(members: Sequence[MemberSpec], data: DataSpec) -> list[str]:
    """Return impossible networks, and settings of members that need other data."""
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


def check_cycles(members: Sequence[MemberSpec], search: SearchSpec | None) -> list[str]:
    """Return members whose epochs are not a multiple of their cycles, or whose snapshots have no cycles."""
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


def check_reference(reference: ReferenceSpec | None, data: DataSpec) -> list[str]:
    """Return published figures that cannot be compared: without validation images, or of unknown classes."""
    if reference is None:
        return []
    if reference.test_accuracy is None and reference.validation_accuracy is not None and not data.validates:
        return [
            "reference.validation_accuracy: nothing to compare it with, since no images are set aside for validation; "
            "add validation = { first = 5000 } to [data]"
        ]
    facts = known_facts(data)
    if facts is None:
        return []
    return [
        f"reference.test_recall.{show_path((name,))}: no such class; {did_you_mean(name, facts.class_names)}"
        for name in islice(reference.test_recall, MAX_PROBLEMS)
        if name not in facts.class_names
    ]
