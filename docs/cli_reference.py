"""Print the command reference in Markdown, for docs/cli.md."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import typer

from fmcli.cli.app import app
from fmcli.cli.command import OPTION_GROUPS, describe_range, split_help


def main() -> None:
    """Print all commands in the order of `fmcli --help`."""
    for path, command in _commands(typer.main.get_command(app), "fmcli"):
        print("\n\n".join(_describe(path, command)), end="\n\n")


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _describe(path: str, command: Any) -> Iterator[str]:
    """Yield the blocks of one command: usage, description, examples, and a table per group of options."""
    context = typer.Context(command, info_name=path)
    description, examples = split_help(command.help)
    yield f"## {path}"
    yield "```text\n" + " ".join([path, *command.collect_usage_pieces(context)]) + "\n```"
    paragraphs = re.split(r"\n\s*\n", _escape(description))
    yield "\n\n".join(textwrap.fill(" ".join(one.split()), 120, break_on_hyphens=False) for one in paragraphs)
    yield "```sh\n" + "\n".join(examples) + "\n```"
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    if arguments:
        yield _table("Argument", arguments, context)
    for group in OPTION_GROUPS:
        options = [one for one in command.params if getattr(one, "rich_help_panel", None) == group]
        if options:
            yield f"**{group}**"
            yield _table("Option", options, context)


def _table(kind: str, parameters: list[Any], context: typer.Context) -> str:
    """Return a table of arguments or options with their meaning."""
    rows = [f"| {kind} | Meaning |", "|---|---|"]
    for parameter in parameters:
        name, text = parameter.get_help_record(context)
        name = name.split(" ")[0] if kind == "Argument" else name
        rows.append(f"| `{_cell(name)}` | {_escape(_cell(describe_range(text)))} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escape(text: str) -> str:
    """Return text with a backslash before characters that Markdown would interpret."""
    return re.sub(r"(?<!\\)([<>*_`\[\]])", r"\\\1", text)


if __name__ == "__main__":
    main()
