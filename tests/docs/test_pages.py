"""The commands of README.md and of each page run, and print what the page shows.

By default, trainings are short; see `server.py`. With `--as-written`, they are complete, and a second run continues
after the last command that succeeded.
"""

import itertools
import json
import re

import pytest

from pages import CUT, ROOT, Command, ShownFile, documentation_pages, parse_page
from refresh import run_shell, write_file

# contributing.md: its commands run in a changed copy of the package; see test_contributing.py
PAGES = [page for page in documentation_pages() if page.stem != "contributing"]
DONE = "commands.done.json"
_EXACT = re.compile(r"fmcli (recipe|data info|(\w+ )*--help|(\w+ )*-h|--version)\b")
_RULE = re.compile(r"^ *─{4,}$")


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_commands_of_a_page(page, copy_folder, environment, as_written, published_data):
    steps = parse_page(page.read_text("utf-8"))
    if not any(isinstance(step, Command) for step in steps):
        return
    folder = copy_folder(page)
    done = _read_done(folder)
    for number, step in enumerate(steps):
        if isinstance(step, ShownFile):
            write_file(step, folder)
        elif as_written and done[number : number + 1] == [step.text]:
            continue
        else:
            status, output = run_shell(step.text, folder, environment)
            if published_data is not None:  # the pages show the folder of the Debian package
                output = output.replace(str(published_data), "/usr/share/datasets/fashion-mnist")
            problem = check_output(step, status, output, exact=published_data is not None)
            assert not problem, f"{page.relative_to(ROOT)}:{step.line}: {problem}\n$ {step.text}\n{output}"
        done[number:] = [step.name if isinstance(step, ShownFile) else step.text]
        (folder / DONE).write_text(json.dumps(done), "utf-8")


def _read_done(folder):
    path = folder / DONE
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def check_output(command: Command, status: int, output: str, *, exact: bool) -> str:
    """Return the difference between a command and the page, or an empty string.

    Args:
        command: The command with its shown output.
        status: Exit status.
        output: The complete output.
        exact: Whether commands that depend on no training must print the shown output.
    """
    if status != command.status:
        return f"exit status {status}, expected {command.status}"
    shown, lines = ([line.rstrip() for line in text] for text in (command.shown, output.rstrip("\n").split("\n")))
    if not shown:
        return ""
    if exact and is_exact(command.text):
        return "" if contains(lines, shown) else "the output differs from the page; run docs/refresh.py --run"
    missing = missing_header(lines, shown)
    return f"the output has no table with the header {missing!r}" if missing else ""


def is_exact(text: str) -> bool:
    """Return whether the output of a command depends on no training."""
    commands = re.findall(r"(?<![\w/.-])fmcli .*?(?=$|[|;&)])", text)
    return bool(commands) and all(_EXACT.match(command) and "checkpoints/" not in command for command in commands)


def contains(lines: list[str], shown: list[str]) -> bool:
    """Return whether lines are the shown ones, in which a line `…` replaces any number of lines."""
    parts = [[]]
    for line in shown:
        if line.strip() == CUT:
            parts.append([])
        else:
            parts[-1].append(line)
    start, last = 0, len(parts) - 1
    for number, part in enumerate(parts):
        starts = range(start, len(lines) - len(part) + 1)
        if number == 0:
            starts = [0]
        elif number == last and part:
            starts = [len(lines) - len(part)]
        start = next((index for index in starts if lines[index : index + len(part)] == part), None)
        if start is None:
            return False
        start += len(part)
    return last > 0 or start == len(lines)


def missing_header(lines: list[str], shown: list[str]) -> str:
    """Return the first table header that is shown but not printed, in the same order; or an empty string."""
    printed = iter(_headers(lines))
    return next((" ".join(header) for header in _headers(shown) if header not in printed), "")


def _headers(lines: list[str]) -> list[list[str]]:
    return [above.split() for above, rule in itertools.pairwise(lines) if _RULE.match(rule)]


def test_shown_output_is_compared():
    assert contains(["a", "b", "c"], ["a", CUT, "c"])
    assert contains(["a", "b", "c"], ["a", CUT])
    assert contains(["a", "b"], ["a", "b"])
    assert not contains(["a", "b"], ["a"])
    assert not contains(["a", "b"], ["b", CUT])
    assert not contains(["a", "b"], [CUT, "a"])
    assert is_exact("fmcli recipe list | head -n 3")
    assert not is_exact("fmcli recipe list; fmcli evaluate a")
    assert not is_exact("ls")
    assert missing_header(["A  B", "────"], ["A   B", "─────"]) == ""
    assert missing_header(["A  B", "────"], ["A   C", "─────"]) == "A C"


def test_parts_of_a_page_are_found():
    page = "`a.toml`:\n\n```toml\nx = 1\n```\n\n```console\n$ a \\\n  b  # why\nout\n…\n$ c\n$ echo $?\n3\n```\n"
    page += "<!-- not run: hours -->\n```console\n$ long\n```\n"
    file, first, second = parse_page(page)
    assert (file.name, file.content) == ("a.toml", "x = 1\n")
    assert (first.line, first.text, first.shown, first.status) == (8, "a \\\n  b  # why", ("out", "…"), 0)
    assert (second.text, second.shown, second.status) == ("c", (), 3)
