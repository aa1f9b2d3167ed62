"""Help: groups of options, examples, width, and what fmcli prints if a word is missing or misspelt."""

import re
import shlex

import numpy as np
import pytest
import typer
from PIL import Image

from fmcli.cli import run
from fmcli.cli.app import app
from fmcli.cli.command import OPTION_GROUPS, split_help
from fmcli.errors import ExitStatus


def command_paths(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_paths(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(command_paths(typer.main.get_command(app)))


@pytest.fixture
def show(capsys, monkeypatch):
    def shown(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        status = run(list(words))
        return status, capsys.readouterr()

    return shown


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_option_is_in_a_group_and_the_groups_are_in_order(path, show):
    wanted = {option.rich_help_panel for option in COMMANDS[path].params if option.param_type_name == "option"}
    assert wanted <= set(OPTION_GROUPS)
    status, shown = show(*path, "--help")
    assert status == ExitStatus.DONE
    headings = [line.removesuffix(":") for line in shown.out.splitlines() if line.endswith(":") and line[0] != " "]
    assert [name for name in headings if name in OPTION_GROUPS] == [name for name in OPTION_GROUPS if name in wanted]
    assert headings[-1] == "Help"


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_the_terminal(path, columns, show):
    _, shown = show(*path, "--help", columns=columns)
    long = [line for line in shown.out.splitlines() if len(line) > min(columns, 80)]
    _, examples = split_help(COMMANDS[path].help)
    assert [line for line in long if line.removeprefix("  ") not in examples and "<" not in line] == []


def test_without_arguments_fmcli_prints_what_to_type_first(show):
    status, shown = show()
    assert status == ExitStatus.USAGE
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 4
    for word in ("Fashion-MNIST", "train --recipe quick", "ensemble evaluate", "folder:", "fmcli --help"):
        assert word in shown.err


@pytest.mark.parametrize("group", ["ensemble", "recipe", "data"])
def test_a_group_without_arguments_prints_its_help(group, show):
    status, shown = show(group)
    assert status == ExitStatus.USAGE
    assert "Commands:" in shown.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tran", "Did you mean 'train'?"),
        ("train quick", "Example: fmcli train --recipe quick"),
        ("train --recpie quick", "--recpie (Possible options: --recipe)"),
        ("train --recipe quik", "did you mean 'quick'?"),
        ("evaluate", "Example: fmcli evaluate checkpoints/quick"),
        ("ensemble evalute", "Did you mean 'evaluate'?"),
        ("ensemble select checkpoints/quick", "Example: fmcli ensemble select checkpoints/quick --size 3"),
    ],
)
def test_an_error_says_what_to_type(words, expected, show):
    status, shown = show(*words.split())
    assert status == ExitStatus.USAGE
    assert expected in " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("n_images", "overrides", "n_train"),
    [
        (50, [], 64),  # 80 of the 100 images are for training, and 64 of them not for validation
        (38, [], 48),  # one full batch per epoch; smaller batches are skipped
        (50, ["data.validation={ fraction = 0.5 }"], 40),
    ],
)
def test_data_info_prints_how_to_train_on_a_folder(tmp_path, monkeypatch, show, n_images, overrides, n_train):
    """The printed command is valid, and its training has at least 700 steps."""
    for name, level in (("cat", 20), ("dog", 220)):
        (tmp_path / "my pets" / name).mkdir(parents=True)
        for number in range(n_images):
            image = np.full((8, 8), level + number % 9, np.uint8)
            Image.fromarray(image).save(tmp_path / "my pets" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    _, shown = show("data", "info", "folder:my pets", *(word for one in overrides for word in ("--set", one)))
    [command] = re.findall(r"^Next: fmcli (train .*)$", shown.err, re.MULTILINE)
    status, shown = show(*shlex.split(command), "--plan", "--format", "json")
    assert status == ExitStatus.DONE
    epochs, batch_size = (int(re.search(rf"trainer.{key}=(\d+)", command)[1]) for key in ("epochs", "batch_size"))
    assert epochs * (n_train // batch_size) >= 700
    assert command.count("data.validation") == 1
    assert command.endswith("--output 'checkpoints/my pets'")
