"""Documents: one result as tables for people and as JSON or CSV for scripts."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from fmcli.choices import Format
from fmcli.errors import printable
from fmcli.report.console import Terminal

Record = Mapping[str, Any]
_MIN_TEXT_WIDTH = 10  # characters; longer text is folded, numbers are not
_GAP_WIDTH = 3  # characters between two columns


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table for people.

    Args:
        columns: Column headers. A header that starts with `>` aligns its column to the right.
        rows: Formatted cells.
        title: Line above the table.
        summary: Number of last rows that are totals or averages, separated by a blank line.
        notes: Lines below the table.
        emphasis: Index of the row to print in bold.
        matrix: Never print the rows as a list, because only the columns next to each other make sense.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    summary: int = 0
    notes: Sequence[str] = ()
    emphasis: int | None = None
    matrix: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A result.

    Args:
        sheets: Tables for the format `table`.
        payload: Complete result for `json`.
        records: Rows for `jsonl` and `csv`, all with the same keys.
    """

    sheets: Sequence[Sheet]
    payload: Mapping[str, Any]
    records: Sequence[Record] = field(default=())


def emit(document: Document, format_: Format, terminal: Terminal) -> None:
    """Write a document to standard output.

    Raises:
        OutputClosed: The reader has closed standard output.
    """
    match format_:
        case "table":
            for index, sheet in enumerate(document.sheets):
                if index:
                    terminal.print()
                print_sheet(sheet, terminal)
        case "json":
            terminal.write(terminal.to_json(document.payload, indent=2) + "\n")
        case _:
            write = record_writer(format_, terminal)
            for record in document.records:
                write(record)


def print_sheet(sheet: Sheet, terminal: Terminal) -> None:
    """Print a table with its title and notes. On a narrow terminal, print it as a list instead of cutting it."""
    if sheet.title:
        terminal.print(Text(printable(sheet.title), style="bold"))
    if sheet.rows:
        min_width = _min_width(sheet)
        if min_width <= terminal.out.width:
            terminal.print(build_table(sheet))
        elif sheet.matrix:
            terminal.print(f"(Not shown: it needs a terminal of {min_width} columns. JSON output contains it.)")
        else:
            terminal.print(_format_list(sheet))
    for note in sheet.notes:
        terminal.print(printable(note))


def build_table(sheet: Sheet) -> Table:
    """Return the rich table of a sheet."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column, width in zip(sheet.columns, _min_column_widths(sheet), strict=True):
        number = column.startswith(">")
        table.add_column(
            printable(column.removeprefix(">")),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=width,
        )
    first_summary = len(sheet.rows) - sheet.summary
    for index, row in enumerate(sheet.rows):
        if sheet.summary and index == first_summary:
            table.add_section()
        table.add_row(*map(printable, row), style="bold" if index == sheet.emphasis else None)
    return table


def _min_column_widths(sheet: Sheet) -> list[int]:
    """Return the width of each column in characters if text is folded as far as possible."""
    widths = []
    for index, column in enumerate(sheet.columns):
        full = max(len(column.removeprefix(">")), *(cell_len(row[index]) for row in sheet.rows))
        widths.append(full if column.startswith(">") else min(full, _MIN_TEXT_WIDTH))
    return widths


def _min_width(sheet: Sheet) -> int:
    """Return the width in characters that the table needs at least."""
    widths = _min_column_widths(sheet)
    return sum(widths) + _GAP_WIDTH * (len(widths) - 1)


def _format_list(sheet: Sheet) -> str:
    """Return the rows one below the other: the first text column as a heading, then one line per value."""
    headers = [column.removeprefix(">") for column in sheet.columns]
    name = next((index for index, column in enumerate(sheet.columns) if not column.startswith(">")), 0)
    blocks = []
    for row in sheet.rows:
        values = [f"  {headers[index]}: {printable(cell)}" for index, cell in enumerate(row) if index != name and cell]
        blocks.append("\n".join([f"{headers[name]} {printable(row[name])}", *values]))
    return "\n".join(blocks)


def record_writer(format_: Format, terminal: Terminal) -> Callable[[Record], None]:
    """Return a function that writes one record at a time, as JSON Lines or as CSV with a header."""
    if format_ != "csv":
        return lambda record: terminal.write(terminal.to_json(record) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    has_header = False

    def write(record: Record) -> None:
        nonlocal has_header
        if not has_header:
            writer.writerow(record)
            has_header = True
        writer.writerow(_format_csv(value) for value in record.values())
        terminal.write(buffer.getvalue())
        buffer.seek(0)
        buffer.truncate()

    return write


def _format_csv(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with two decimals, or nothing for None.

    Example:
        >>> percent(0.93456), percent(None)
        ('93.46', '')
    """
    return "" if value is None else f"{100 * value:.2f}"


def show_value(value: object) -> str:
    """Return a recipe value rounded for display, or nothing for None.

    Example:
        >>> show_value(0.0023117), show_value(None), show_value([16, 32])
        ('0.002312', '', '[16, 32]')
    """
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
