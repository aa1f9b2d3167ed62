"""Parse the pages of the documentation: commands, files that a page shows, and generated text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUT = "…"

_FENCE = re.compile(r"(`{3,})(\w*)$")
_NOT_RUN = re.compile(r"<!-- not run: .+ -->$")
_FILE_NAME = re.compile(r"`([^`\s]+)`:$")
_REGION = re.compile(r"^<!-- output of: (?P<command>.+?) -->\n(?P<text>.*?)^<!-- end of output -->$", re.M | re.S)
_STATUS = "echo $?"


@dataclass(frozen=True, slots=True)
class Command:
    """A command in a console block.

    Args:
        line: Number of its line in the page, from 1.
        text: The command, as bash reads it.
        shown: Lines of output below the command.
        output_line: Number of the line after the command, where its output starts.
        status: Expected exit status: the number that `echo $?` prints below the command, otherwise 0.
    """

    line: int
    text: str
    shown: tuple[str, ...]
    output_line: int
    status: int = 0


@dataclass(frozen=True, slots=True)
class ShownFile:
    """A file that a page shows below its name."""

    line: int
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Region:
    """Text between `<!-- output of: COMMAND -->` and `<!-- end of output -->`."""

    command: str
    text: str
    start: int
    end: int


@dataclass(slots=True)
class _Block:
    line: int
    language: str
    label: str  # the line above the block that is not blank
    lines: list[str] = field(default_factory=list)


def documentation_pages() -> list[Path]:
    """Return README.md and the pages of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def parse_page(text: str) -> list[Command | ShownFile]:
    """Return the commands to run and the files to write, in the order of the page."""
    steps: list[Command | ShownFile] = []
    for block in _blocks(text):
        if block.language == "console":
            if not _NOT_RUN.match(block.label):
                steps += _commands(block)
        elif name := _FILE_NAME.match(block.label):
            steps.append(ShownFile(block.line, name[1], "".join(f"{line}\n" for line in block.lines)))
    return steps


def regions(text: str) -> list[Region]:
    """Return the generated regions of a page.

    Raises:
        ValueError: A start or end marker has no counterpart.
    """
    found = list(_REGION.finditer(text))
    if len(found) * 2 != len(re.findall(r"^<!-- (?:output of: |end of output)", text, re.M)):
        raise ValueError("each line <!-- output of: COMMAND --> needs a line <!-- end of output -->")
    return [Region(one["command"], one["text"], *one.span("text")) for one in found]


def _blocks(text: str) -> Iterator[_Block]:
    block, fence, label = None, "", ""
    for number, line in enumerate(text.split("\n"), start=1):
        if block is not None:
            if line == fence:
                yield block
                block, label = None, ""
            else:
                block.lines.append(line)
        elif found := _FENCE.match(line):
            fence = found[1]
            block = _Block(number, found[2], label)
        elif line.strip():
            label = line


def _commands(block: _Block) -> list[Command]:
    commands: list[Command] = []
    lines = list(enumerate(block.lines, start=block.line + 1))
    while lines:
        number, line = lines.pop(0)
        if not line.startswith("$ "):
            raise ValueError(f"line {number}: a console block must start with a command: $ …")
        words = [line[2:]]
        while words[-1].endswith("\\"):
            words.append(lines.pop(0)[1])
        first = lines[0][0] if lines else number + len(words)
        shown = []
        while lines and not lines[0][1].startswith("$ "):
            shown.append(lines.pop(0)[1])
        if words == [_STATUS] and commands:
            last = commands.pop()
            commands.append(Command(last.line, last.text, last.shown, last.output_line, int(shown[0])))
        else:
            commands.append(Command(number, "\n".join(words), tuple(shown), first))
    return commands
