"""Format tables of results as Markdown."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def heading(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [row(cells), "|---" * len(cells) + "|"]


def row(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Format a value, or the mean and standard deviation of several values.

    Example:
        >>> spread([1.0], 1), spread([1.0, 3.0], 1)
        ('1.0', '2.0 ± 1.4')
    """
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def duration(seconds: float) -> str:
    """Format a time in hours, minutes or seconds.

    Example:
        >>> duration(5400), duration(90), duration(2)
        ('1.5 h', '1.5 min', '2.0 s')
    """
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def percent(fraction: float, *, signed: bool = False) -> str:
    """Format a fraction in percent, or a difference of fractions in points.

    Example:
        >>> percent(0.9424), percent(0.0017, signed=True)
        ('94.24', '+0.17')
    """
    return f"{100 * fraction:{'+' if signed else ''}.2f}"


def describe_source(result: Mapping[str, Any], *details: str) -> list[str]:
    """Return lines of text below a table: command, details, hardware, versions and commit, as far as recorded."""
    machine = result["machine"]
    command = [f"Command: `{' '.join(result['command'])}`"] if "command" in result else []
    hardware = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    bf16 = ", ".join(machine["cpu_bf16"]) or "no bf16 units"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    facts = [*command, *details, f"{hardware}, {bf16}", f"Python {machine['python']}, {versions}"]
    return ["", *wrap(f"{'. '.join(facts)}. Commit {short_commit(machine)}.")]


def short_commit(machine: Mapping[str, Any]) -> str:
    """Return the first digits of the commit, followed by `+` if tracked files differed from it."""
    commit = machine["commit"] or "unknown"
    return f"{commit[:7]}{commit[40:]}"


def wrap(text: str) -> list[str]:
    """Break a paragraph into lines."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
