"""--help is complete. `tests/docs` tests README.md and the pages."""

import pytest
import typer

from fmcli.cli import run
from fmcli.cli.app import app
from fmcli.cli.command import split_help
from fmcli.errors import ExitStatus


def command_paths(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_paths(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = list(command_paths(typer.main.get_command(app)))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_help_of_every_command_has_an_example(path, command):
    _, examples = split_help(command.help)
    assert any(f"fmcli {' '.join(path)}" in line for line in examples)


def test_lists_of_commands_are_not_cut(capsys):
    for group in ([], ["recipe"], ["data"], ["ensemble"]):
        assert run([*group, "--help"]) == ExitStatus.DONE
        _, _, commands = capsys.readouterr().out.partition("Commands:")
        assert commands
        assert "..." not in commands


def test_every_option_has_a_help_text():
    for path, command in COMMANDS:
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", (path, parameter.name)
