"""Command classes with plainer help and error messages than typer's own."""

import inspect
import re
import shutil
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fmcli.errors import ExitStatus, did_you_mean

INPUT, TRAINING, SELECTION, COMPARISON, VOTING, OUTPUT, MACHINE = OPTION_GROUPS = (
    "Input", "Training", "Selection", "Comparison", "Voting", "Output", "Machine"
)  # fmt: skip
"""Headings of the options, in the order of the help. Each option has one of them as its `rich_help_panel`."""

_WRONG_CHOICE = re.compile(r"(.*) is not one of (.*)\.", re.DOTALL)  # typer's message
_EXAMPLES = re.compile(r"\n+Examples?:[ \n](.*)", re.DOTALL)
_WIDTH = 80  # maximum width of the help
_NARROW = 60  # in a narrower terminal, the help of an option is below its name

_FIRST_STEPS = """\
Fashion-MNIST:    fmcli data fetch && fmcli train --recipe quick
                  fmcli ensemble evaluate checkpoints/quick
Your own images:  fmcli data info folder:DIR  (then it prints how to train on them)
All commands:     fmcli --help"""


def split_help(text: str) -> tuple[str, list[str]]:
    """Return the description, and the lines of the examples, of a command's help.

    The examples are on the lines below `Examples:`. A single one can also follow `Example:`.
    """
    text = inspect.cleandoc(text)
    found = _EXAMPLES.search(text)
    return (text[: found.start()], textwrap.dedent(found[1]).splitlines()) if found else (text, [])


class Command(TyperCommand):
    """A command whose help has examples and groups of options, and whose errors say what to type next."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, and make the messages of typer's errors more helpful."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = self._improve(error.message)
            raise
        except Exception as error:
            if similar := getattr(error, "possibilities", None):  # an unknown option: name only the most similar one
                error.possibilities = similar[:1]  # type: ignore[attr-defined]
            raise

    def _improve(self, message: str) -> str:
        """Return the message with an example if an argument is missing, or with the nearest choice if one is wrong."""
        if not message:
            _, examples = split_help(self.help or "")
            return f"Example: {examples[0]}" if examples else ""
        message = message.removeprefix("Value error, ")
        if match := _WRONG_CHOICE.fullmatch(message):
            value, choices = match.groups()
            suggestion = did_you_mean(value.strip("'"), re.findall("'([^']*)'", choices))
            return f"{value}\n{textwrap.fill(suggestion, _WIDTH, break_on_hyphens=False)}"
        return message

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: RECIPE instead of typer's {RECIPE}."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def get_help(self, ctx: Any) -> str:
        """Return the help, fitted to the terminal."""
        _fit_terminal(ctx)
        return super().get_help(ctx)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the description and the examples. Examples are not wrapped, so that they can be copied."""
        description, examples = split_help(self.help or "")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(description)
        if examples:
            with formatter.section("Example" if len(examples) == 1 else "Examples"):
                formatter.write("".join(f"  {line}".rstrip() + "\n" for line in examples))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options in groups."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *OPTION_GROUPS, "Help")}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Help"
                name, text = record
                groups[group].append((name.split(" ")[0] if is_argument else name, describe_range(text)))
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows, col_max=30 if formatter.width >= _NARROW else 4)


class Group(TyperGroup):
    """A group of commands."""

    def get_help(self, ctx: Any) -> str:
        """Return the help, fitted to the terminal."""
        _fit_terminal(ctx)
        return super().get_help(ctx)


class Root(Group):
    """All commands. Without arguments, it prints what to type first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        if not args and not ctx.resilient_parsing:
            typer.echo(_FIRST_STEPS, err=True)
            raise typer.Exit(ExitStatus.USAGE)
        return super().parse_args(ctx, args)


def describe_range(text: str) -> str:
    """Return the help of an option with typer's `x>=1` and `0<=x<=1` in words."""
    return re.sub(r"\bx>=(\d+)", r"at least \1", re.sub(r"\b(\d+)<=x<=(\d+)", r"\1 to \2", text))


def _fit_terminal(ctx: Any) -> None:
    """Set the width of the help. typer's own help has at least 50 columns."""
    ctx.terminal_width = min(shutil.get_terminal_size().columns, _WIDTH) - 2
