"""Every action has a text, and every option in a text exists."""

import re
from typing import get_args

import typer

from fmcli.cli.app import app
from fmcli.cli.remedies import TEXTS, hint_of
from fmcli.errors import Action, FmcliError, Remedy


def options_of(group):
    for command in group.commands.values():
        if hasattr(command, "commands"):
            yield from options_of(command)
        else:
            yield from (option for parameter in command.params for option in parameter.opts)


def test_every_action_has_a_text():
    assert set(get_args(Action)) == set(TEXTS)


def test_every_option_in_a_text_exists():
    mentioned = {option for text in TEXTS.values() for option in re.findall(r"--[a-z-]+", text)}
    assert mentioned <= set(options_of(typer.main.get_command(app)))


def test_hint_names_each_option_with_its_value():
    error = FmcliError("no", hint="free a core", remedies=[Remedy("threads", 2), "overwrite"])
    assert hint_of(error) == "free a core; --threads 2; --overwrite starts from scratch"
    assert hint_of(FmcliError("no")) is None


def test_hint_joins_values_of_one_option_by_or():
    error = FmcliError("no", remedies=["resume", Remedy("vote", "soft"), Remedy("vote", "majority")])
    assert hint_of(error) == "--resume continues the run; --vote soft or --vote majority"
