"""Results as values: a document is the same thing as tables for people and as JSON or CSV for scripts."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table

from fmcli.choices import Format
from fmcli.errors import printable
from fmcli.report.console import Terminal

Record = Mapping[str, Any]
_NARROWEST_TEXT = 10  # columns; text is folded below its full width, numbers are not
_GAP = 3  # columns between two of a table


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table for people.

    Args:
        columns: Headings; those of numbers begin with `>` and are set to the right.
        rows: Cells, formatted.
        title: What stands above it.
        summary: How many of the last rows are averages, set apart from the rest.
        notes: Lines below it.
        emphasis: The row to stress, by position.
        wide: It only makes sense side by side, as a matrix does.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    summary: int = 0
    notes: Sequence[str] = ()
    emphasis: int | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A result.

    Args:
        sheets: For `table`.
        payload: For `json`: everything.
        records: For `jsonl` and `csv`: one object a row, all with the same keys.
    """

    sheets: Sequence[Sheet]
    payload: Mapping[str, Any]
    records: Sequence[Record] = field(default=())


def emit(document: Document, format_: Format, terminal: Terminal) -> None:
    """Write a document to standard output.

    Raises:
        OutputClosed: Nobody reads it any more.
    """
    match format_:
        case "table":
            for place, sheet in enumerate(document.sheets):
                if place:
                    terminal.print()
                print_sheet(sheet, terminal)
        case "json":
            terminal.write(terminal.to_json(document.payload, indent=2) + "\n")
        case _:
            write = record_writer(format_, terminal)
            for record in document.records:
                write(record)


def print_sheet(sheet: Sheet, terminal: Terminal) -> None:
    """Write one table with its title above and its notes below; on a narrow terminal as a list, never cut."""
    if sheet.title:
        terminal.print(bold(sheet.title))
    if sheet.rows and _narrowest(sheet) <= terminal.out.width:
        terminal.print(build_table(sheet))
    elif sheet.rows and sheet.wide:
        terminal.print(f"(needs {_narrowest(sheet)} columns here; --format json has it, too)")
    elif sheet.rows:
        terminal.print(_as_list(sheet))
    for note in sheet.notes:
        terminal.print(printable(note))


def build_table(sheet: Sheet) -> Table:
    """Return the rich table of a sheet."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column, width in zip(sheet.columns, _least_widths(sheet), strict=True):
        number = column.startswith(">")
        table.add_column(
            printable(column.removeprefix(">")),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=width,
        )
    first_summary = len(sheet.rows) - sheet.summary
    for place, row in enumerate(sheet.rows):
        if sheet.summary and place == first_summary:
            table.add_section()
        table.add_row(*map(printable, row), style="bold" if place == sheet.emphasis else None)
    return table


def _least_widths(sheet: Sheet) -> list[int]:
    """Return how narrow each column of the sheet may become: numbers stay whole, text is folded."""
    widths = []
    for place, column in enumerate(sheet.columns):
        whole = max(len(column.removeprefix(">")), *(cell_len(row[place]) for row in sheet.rows))
        widths.append(whole if column.startswith(">") else min(whole, _NARROWEST_TEXT))
    return widths


def _narrowest(sheet: Sheet) -> int:
    """Return how many columns of the terminal a sheet needs at least."""
    widths = _least_widths(sheet)
    return sum(widths) + _GAP * (len(widths) - 1)


def _as_list(sheet: Sheet) -> str:
    """Return the rows one below the other, each value on a line of its own beside its heading."""
    headings = [column.removeprefix(">") for column in sheet.columns]
    name = next((place for place, column in enumerate(sheet.columns) if not column.startswith(">")), 0)
    blocks = []
    for row in sheet.rows:
        values = [f"  {headings[place]}: {printable(cell)}" for place, cell in enumerate(row) if place != name and cell]
        blocks.append("\n".join([f"{headings[name]} {printable(row[name])}", *values]))
    return "\n".join(blocks)


def record_writer(format_: Format, terminal: Terminal) -> Callable[[Record], None]:
    """Return a function that writes records one by one, as JSON Lines or as CSV with a heading."""
    if format_ != "csv":
        return lambda record: terminal.write(terminal.to_json(record) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    begun = False

    def write(record: Record) -> None:
        nonlocal begun
        if not begun:
            writer.writerow(record)
            begun = True
        writer.writerow(_cell(value) for value in record.values())
        terminal.write(buffer.getvalue())
        buffer.seek(0)
        buffer.truncate()

    return write


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def bold(text: str) -> Any:
    """Return text in bold, safe to print."""
    from rich.text import Text

    return Text(printable(text), style="bold")


def percent(value: float | None) -> str:
    """Return a part of 1 as a percentage.

    Example:
        >>> percent(0.93456), percent(None)
        ('93.46', '')
    """
    return "" if value is None else f"{100 * value:.2f}"


def show_value(value: object) -> str:
    """Return a recipe's value as a person reads it.

    Example:
        >>> show_value(0.0023117), show_value(None), show_value([16, 32])
        ('0.002312', '', '[16, 32]')
    """
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
