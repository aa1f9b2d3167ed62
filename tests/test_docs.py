"""README and --help are complete, and the shell lines of README run as written."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from fmcli.cli import run
from fmcli.cli.app import app
from fmcli.errors import ExitStatus
from tests.processes import start_fmcli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SHELL_LINES = re.search(r"```sh\n(.*?)```", README, re.DOTALL).group(1).splitlines()
MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "checkpoints")
    for path in folder.glob("*.md")
)


def command_paths(group, prefix=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_paths(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = list(command_paths(typer.main.get_command(app)))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_every_command_is_in_the_readme_and_its_help_has_an_example(path, command):
    assert f"fmcli {' '.join(path)}" in README
    assert f"Example: fmcli {' '.join(path)}" in command.help


def test_every_exit_status_is_in_the_readme():
    for status in ExitStatus:
        assert re.search(rf"^\|[ \d,]*\b{status.value}\b[ \d,]*\|", README, re.MULTILINE), status


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


@pytest.mark.parametrize("name", MARKDOWN)
def test_lines_fit_a_page(name):
    """Check the length of lines, except in tables, code blocks, and lines with a web address."""
    text = re.sub(r"^(```+)\w*\n.*?^\1$", "", (ROOT / name).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = (line for line in text.splitlines() if not line.startswith("|") and "https://" not in line)
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("name", MARKDOWN)
def test_each_table_row_is_on_a_separate_line(name):
    lines = (ROOT / name).read_text("utf-8").splitlines()
    assert [line for line in lines if "|---" in line and not re.fullmatch(r"\|(---\|)+", line)] == []


def test_readme_commands_for_own_images_work(tmp_path, monkeypatch, capsys):
    for name, level in (("cat", 20), ("dog", 220)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (30, 20), (level, number, level)).save(tmp_path / "pets" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```console\n(\$ fmcli data info folder:pets.*?)```", README, re.DOTALL).group(1)
    lines = block.replace("\\\n", "").splitlines()
    info, train, evaluate, predict = (shlex.split(line.partition("  #")[0])[2:] for line in lines)
    assert run(info) == ExitStatus.DONE
    assert run([*train, "--set", "trainer.epochs=1"]) == ExitStatus.DONE
    assert run(evaluate) == ExitStatus.DONE
    capsys.readouterr()
    assert run([*predict[:-1], "pets/cat", "--format", "jsonl"]) == ExitStatus.DONE
    assert {json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()} <= {"cat", "dog"}


def test_readme_shows_the_quick_recipe_unchanged():
    recipe = (Path(__file__).parent.parent / "recipes" / "quick.toml").read_text("utf-8")
    assert f"```toml\n{recipe}```" in README


def test_readme_has_five_shell_lines():
    assert len(SHELL_LINES) == 5


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """The working folder that the README assumes: a trained run in checkpoints/quick, and photos."""
    folder = tmp_path_factory.mktemp("reader")
    data = folder / "drawn"
    data.mkdir()
    generator = np.random.default_rng(0)
    for prefix, n in (("train", 256), ("t10k", 64)):
        labels = generator.integers(0, 4, n).astype(np.uint8)
        images = generator.integers(0, 40, (n, 12, 12)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * 6 + 1 : row * 6 + 5, column * 6 + 1 : column * 6 + 5] += 200
        header = bytes([0, 0, 8, 3]) + b"".join(side.to_bytes(4, "big") for side in images.shape)
        (data / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (data / f"{prefix}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + labels.tobytes()
        )
    (folder / "photos").mkdir()
    for index in range(6):
        Image.fromarray(images[index]).resize((40, 30)).save(folder / "photos" / f"image {index}.png")
    (folder / "tiny.toml").write_text(
        f"""
        data = {{ source = "idx:{data}", validation = {{ first = 64 }} }}
        model = {{ family = "kernel-cnn", form = "pooled", widths = [8, 8] }}
        trainer = {{ epochs = 2, batch_size = 32 }}
        members = [{{ name = "k3", model.kernel_size = 3 }}, {{ name = "k5", model.kernel_size = 5 }}]
        """
    )
    done = start_fmcli("train", "--recipe", folder / "tiny.toml", "--output", folder / "checkpoints/quick").finish()
    assert done.status == 0, done.err
    return folder


def run_shell(folder, line):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        # head closes its pipe early; with pipefail, that would count as a failure
        ["bash", *([] if "head" in line else ["-o", "pipefail"]), "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", SHELL_LINES)
def test_shell_lines_of_the_readme_run(working_folder, line):
    if "jq" in line and not shutil.which("jq"):
        if "CI" in os.environ:
            pytest.fail("CI must have jq")
        pytest.skip("needs jq")
    output = run_shell(working_folder, line)
    if line.endswith("uniq -c"):
        assert sum(int(row.split()[0]) for row in output.splitlines()) == 6
    elif "labels.csv" in line:
        assert len((working_folder / "labels.csv").read_text().splitlines()) == 7
    elif "head -n 3" in line:
        assert all("label" in json.loads(row) for row in output.splitlines())
        assert len(output.splitlines()) == 3
    elif "accuracy" in line:
        assert 0 <= float(output) <= 1
