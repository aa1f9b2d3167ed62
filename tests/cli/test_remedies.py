"""Every instruction mentions options that exist."""

import re
from typing import get_args

import typer

from fmcli.cli.app import app
from fmcli.cli.remedies import describe_remedy, hint_of
from fmcli.errors import Action, FmcliError, Remedy


def options_of(group):
    for command in group.commands.values():
        if hasattr(command, "commands"):
            yield from options_of(command)
        else:
            yield from (option for parameter in command.params for option in parameter.opts)


def test_every_option_in_an_instruction_exists():
    instructions = [describe_remedy(Remedy(action)) for action in get_args(Action)]
    mentioned = {option for text in instructions for option in re.findall(r"--[a-z-]+", text)}
    assert mentioned <= set(options_of(typer.main.get_command(app)))


def test_hint_is_followed_by_each_instruction():
    error = FmcliError("no", hint="free a core", remedies=[Remedy("threads", 2), "overwrite"])
    assert hint_of(error) == "free a core; use --threads 2, or use --overwrite to start from scratch"
    assert hint_of(FmcliError("no")) is None


def test_hint_joins_values_of_one_option_by_or():
    error = FmcliError("no", remedies=["resume", Remedy("vote", "soft"), Remedy("vote", "majority")])
    assert hint_of(error) == "use --resume to continue, or use --vote soft or --vote majority"
