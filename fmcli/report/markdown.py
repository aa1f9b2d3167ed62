"""Tables in the Markdown of code hosts."""

import re
from collections.abc import Iterable
from itertools import groupby

from fmcli.errors import printable
from fmcli.report.sheet import Code, Sheet

_CODE = re.compile(r"`([^`]+)`")
_SPECIAL = re.compile(r"[\\`*\[\]<~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")  # `_` between letters needs no escape
_BLOCK_START = re.compile(r"^([#+>=-]|\d+(?=[.)](?: |$)))")  # would start a heading, list, quotation or rule


def format_markdown(sheet: Sheet) -> str:
    r"""Return a sheet as Markdown: the title in bold, a table with aligned columns, and the notes as paragraphs.

    Example:
        >>> print(format_markdown(Sheet("Votes", [{"Class": "a|b", ">Votes": 3}], notes=["Ties: 1."])), end="")
        **Votes.**
        <BLANKLINE>
        | Class | Votes |
        |---|---:|
        | a\|b | 3 |
        <BLANKLINE>
        Ties: 1.
    """
    title = printable(sheet.title)
    blocks = [f"**{_paragraph(title if title.endswith(('.', ':', '?')) else f'{title}.')}**"] if title else []
    if sheet.rows:
        blocks.append("\n".join(_table(sheet)))
    for is_list, notes in groupby(sheet.notes, lambda note: note.startswith("  ")):
        paragraphs = [_paragraph(" ".join(printable(note).split())) for note in notes]
        blocks += ["\n".join(f"- {item}" for item in paragraphs)] if is_list else paragraphs
    return "\n\n".join(blocks) + "\n"


def _table(sheet: Sheet) -> Iterable[str]:
    """Yield the lines of a table."""
    columns = sheet.columns()
    yield _join(_cell(column.name) for column in columns)
    yield _join(("---:" if column.number else "---" for column in columns), space="")
    for index in range(len(sheet.rows)):
        cells = [_cell(column.cells[index]) for column in columns]
        is_total = index >= len(sheet.rows) - sheet.n_totals
        yield _join(f"**{cell}**" if is_total and cell else cell for cell in cells)


def _join(cells: Iterable[str], space: str = " ") -> str:
    return "|" + "|".join(f"{space}{cell}{space}" if cell else space for cell in cells) + "|"


def _cell(text: str) -> str:
    indent = "&emsp;" * ((len(text) - len(text.lstrip())) // 2)
    escaped = _code(text) if isinstance(text, Code) else _escape(text.strip())
    return indent + escaped.replace("|", "\\|")


def _paragraph(text: str) -> str:
    """Return escaped text that starts neither a list nor another block."""
    return _BLOCK_START.sub(lambda match: f"\\{match[1]}" if not match[1].isdigit() else f"{match[1]}\\", _escape(text))


def _escape(text: str) -> str:
    """Return text with a backslash before each special character. Text between backquotes remains code."""
    parts = _CODE.split(text)  # text, code, text, …
    return "".join(_code(part) if index % 2 else _SPECIAL.sub(r"\\\g<0>", part) for index, part in enumerate(parts))


def _code(text: str) -> str:
    """Return text as code. Its delimiter is longer than each run of backquotes in the text."""
    if not text.strip():
        return text
    delimiter = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{delimiter}{padding}{text}{padding}{delimiter}"
