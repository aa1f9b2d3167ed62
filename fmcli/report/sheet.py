"""Sheets: tables for people, independent of the format in which they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmcli.errors import printable

UNBOUNDED_COLUMNS = 100_000  # width of output to files and pipes, so that tables are never cut


class Code(str):
    """Text that a user types, such as a key. It is set in a monospaced font if the format has one."""

    __slots__ = ()


Row = Mapping[str, str | int | None]
"""Cells by column header. A header that starts with `>` aligns its column to the right."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Args:
        name: The header.
        number: Whether the column contains numbers, which are aligned to the right.
        cells: The text of each row. Control characters are escaped.
    """

    name: str
    number: bool
    cells: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table for people.

    Text between backquotes is code in titles, cells and notes.

    Args:
        title: Line above the table.
        rows: The rows of the table. The first row has a cell for every column; a cell that is missing or None is empty.
        n_totals: Number of rows at the end that are totals or averages. They are bold, below a blank line.
        notes: Lines below the table. Lines that start with two spaces are items of a list.
        hints: Lines below the notes that are useful only at the terminal, such as the next command. Markdown and LaTeX
            omit them.
        max_width: Maximum width in characters; longer text is folded. Default: the width of the terminal.
        matrix: Whether the rows are a matrix. On a narrow terminal, it is left out instead of printed as a list.
    """

    title: str = ""
    rows: Sequence[Row] = ()
    n_totals: int = 0
    notes: Sequence[str] = ()
    hints: Sequence[str] = ()
    max_width: int = UNBOUNDED_COLUMNS
    matrix: bool = False

    def columns(self) -> list[Column]:
        """Return the columns of the table."""
        return [
            Column(
                printable(header.removeprefix(">")),
                header.startswith(">"),
                [format_cell(row.get(header)) for row in self.rows],
            )
            for header in (self.rows[0] if self.rows else ())
        ]


def format_cell(value: str | int | None) -> str:
    r"""Return the text of a cell, with control characters escaped.

    Example:
        >>> format_cell(10_000), format_cell("a\tb"), format_cell(None)
        ('10,000', 'a\\tb', '')
    """
    if isinstance(value, int):
        return f"{value:,}"
    text = printable(value or "")
    return Code(text) if isinstance(value, Code) else text
