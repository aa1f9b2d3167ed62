"""The plan of a run: what happens to each member, and how long it takes."""

from collections.abc import Sequence
from dataclasses import asdict

from fmcli.choices import ExecutorName
from fmcli.events import PlannedMember
from fmcli.report.document import Document
from fmcli.report.sheet import Row, Sheet


def plan_document(
    folder: str, members: Sequence[PlannedMember], *, executor: ExecutorName, jobs: int, seconds: float | None
) -> Document:
    """Return a table of the members of a run, and the total time.

    Args:
        folder: The run folder.
        members: The plan for each member.
        executor: Name of the executor that trains the members.
        jobs: Number of members that train in parallel.
        seconds: Estimated total time; None if unknown.
    """
    records = [{**asdict(member), "executor": executor if member.threads else None} for member in members]
    total = f"; estimated total time: {_show_seconds(seconds)}" if seconds is not None else ""
    notes = [f"Run: {folder}", f"Members in parallel: {jobs}{total}"]
    payload = {"run": folder, "executor": executor, "jobs": jobs, "seconds": seconds, "members": records}
    return Document([Sheet(rows=[_row(member, executor) for member in members], notes=notes)], payload, records)


def _row(member: PlannedMember, executor: ExecutorName) -> Row:
    return {
        "Member": member.member,
        "State": _describe_state(member),
        "Executor": executor if member.threads else None,
        ">Threads": member.threads,
        ">Estimated time": None if member.seconds is None else _show_seconds(member.seconds),
    }


def _describe_state(member: PlannedMember) -> str:
    if member.state == "claimed":
        return "in training by another process"
    after = f" after step {member.steps_done}" if member.steps_done else ""
    return f"resumes at epoch {member.epoch}{after}" if member.state == "resumes" else member.state


def _show_seconds(seconds: float) -> str:
    """Return a duration with two units at most.

    Example:
        >>> _show_seconds(42.4), _show_seconds(754), _show_seconds(8040)
        ('42 s', '12 min 34 s', '2 h 14 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
