"""A command class with plainer texts than typer's own."""

import re
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand

from fmcli.errors import did_you_mean

_WRONG_CHOICE = re.compile(r"(.*) is not one of (.*)\.", re.DOTALL)  # typer's message
_WIDTH = 80  # width of typer's help


class Command(TyperCommand):
    """A command that shows an argument as RECIPE. typer shows {RECIPE} in the usage line and RECIPE <str> below it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. For a wrong choice, suggest the nearest one, or list all choices in short lines."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            if match := _WRONG_CHOICE.fullmatch(error.message):
                value, choices = match.groups()
                suggestion = did_you_mean(value.strip("'"), re.findall("'([^']*)'", choices))
                error.message = f"{value}\n{textwrap.fill(suggestion, _WIDTH, break_on_hyphens=False)}"
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options."""
        parameters = self.get_params(ctx)
        records = [(one.param_type_name, record) for one in parameters if (record := one.get_help_record(ctx))]
        arguments = [(name.split(" ")[0], text) for kind, (name, text) in records if kind == "argument"]
        options = [record for kind, record in records if kind == "option"]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
