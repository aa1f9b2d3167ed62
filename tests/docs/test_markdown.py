"""Markdown files fit a page, generated text is up to date, and no command, option or exit status is missing."""

import re

import pytest
import typer

from fmcli.cli.app import app
from fmcli.errors import ExitStatus
from pages import ROOT, documentation_pages, regions
from refresh import refresh_regions

MARKDOWN = sorted(
    path for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks", ROOT / "checkpoints") for path in folder.glob("*.md")
)
GENERATED = [page for page in documentation_pages() if "<!-- output of: " in page.read_text("utf-8")]


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", MARKDOWN, ids=ids(MARKDOWN))
def test_lines_fit_a_page(path):
    """Check the length of lines, except in generated text, tables, code blocks, and lines with a web address."""
    text = path.read_text("utf-8")
    for region in reversed(regions(text)):
        text = text[: region.start] + text[region.end :]
    text = without_code(text)
    lines = (line for line in text.splitlines() if not line.startswith("|") and "https://" not in line)
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=ids(MARKDOWN))
def test_each_table_row_is_on_a_separate_line(path):
    lines = path.read_text("utf-8").splitlines()
    assert [line for line in lines if "|---" in line and not re.fullmatch(r"\|(---\|)+", line)] == []


@pytest.mark.parametrize("path", MARKDOWN, ids=ids(MARKDOWN))
def test_links_to_files_and_headings_are_not_broken(path):
    links = re.findall(r"(?<!`)\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", without_code(path.read_text("utf-8")))
    for name, anchor in links:
        target = path.parent / name if name else path
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def without_code(text):
    return re.sub(r"^(```+)\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Return the anchors of a page: lower case, without punctuation, with hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_region_without_its_end_is_refused():
    with pytest.raises(ValueError, match="needs a line <!-- end of output -->"):
        regions("<!-- output of: a -->\nA\nText\n<!-- output of: b -->\nB\n<!-- end of output -->\n")


@pytest.mark.parametrize("path", GENERATED, ids=ids(GENERATED))
def test_generated_text_is_up_to_date(path, environment):
    text = path.read_text("utf-8")
    assert refresh_regions(text, environment) == text, f"run: python docs/refresh.py {path.relative_to(ROOT)}"


def test_every_command_and_option_is_on_the_page_cli():
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    commands = list(command_paths(typer.main.get_command(app)))
    assert [name for name, _ in commands if f"fmcli {name}" not in page] == []
    options = {
        option for _, command in commands for one in command.params for option in (*one.opts, *one.secondary_opts)
    }
    assert sorted(option for option in options if option.startswith("--") and option not in page) == []


def command_paths(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from command_paths(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_every_exit_status_is_on_the_page_pipelines():
    page = (ROOT / "docs" / "pipelines.md").read_text("utf-8")
    for status in ExitStatus:
        assert re.search(rf"^\|[ \d,]*\b{status.value}\b[ \d,]*\|", page, re.MULTILINE), status
