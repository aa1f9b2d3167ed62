"""Documents: one result as tables for people and as JSON or CSV for scripts."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from fmcli.choices import Format, SheetFormat
from fmcli.errors import printable
from fmcli.report.console import Terminal
from fmcli.report.latex import format_latex
from fmcli.report.markdown import format_markdown
from fmcli.report.sheet import Row, Sheet, format_cell

Record = Mapping[str, Any]
_MIN_TEXT_WIDTH = 10  # characters; longer text is folded, numbers are not
_GAP_WIDTHS = (3, 2)  # characters between two columns; the second on a narrow terminal


@dataclass(frozen=True, slots=True)
class Document:
    """A result.

    Args:
        sheets: Tables for people, for `table`, `markdown` and `latex`.
        payload: Complete result for `json`.
        records: Rows for `jsonl` and `csv`, all with the same keys.
    """

    sheets: Sequence[Sheet]
    payload: Mapping[str, Any]
    records: Sequence[Record]


def emit(document: Document, format_: Format, terminal: Terminal) -> None:
    """Write a document to standard output.

    Raises:
        OutputClosed: The program that reads standard output has closed it.
    """
    match format_:
        case "table" | "markdown" | "latex":
            write_sheets(document.sheets, format_, terminal)
        case "json":
            terminal.write(terminal.to_json(document.payload, indent=2) + "\n")
        case "jsonl" | "csv":
            write_records(document.records, format_, terminal)


def write_sheets(sheets: Iterable[Sheet], format_: SheetFormat, terminal: Terminal) -> None:
    """Write each table as soon as it arrives, with an empty line between two tables.

    Raises:
        OutputClosed: The program that reads standard output has closed it.
    """
    written = False
    for sheet in sheets:
        if format_ == "table":
            if written:
                terminal.print()
            print_sheet(sheet, terminal)
        elif text := (format_markdown if format_ == "markdown" else format_latex)(sheet):
            terminal.write(f"\n{text}" if written else text)
        written = True


# --- tables -----------------------------------------------------------------------------------------------


def print_sheet(sheet: Sheet, terminal: Terminal) -> None:
    """Print a table with its title and notes. On a narrow terminal, print it as a list instead of cutting it."""
    if sheet.title:
        terminal.print(Text(printable(sheet.title), style="bold"), max_width=sheet.max_width)
    if sheet.rows:
        for gap_width in _GAP_WIDTHS:
            table, min_width = _build_table(sheet, gap_width)
            if min_width <= terminal.out.width:
                break
        if min_width <= terminal.out.width:
            terminal.print(table, max_width=sheet.max_width)
        elif sheet.matrix:
            terminal.print(f"(Not shown: this table needs {min_width} columns. The JSON output contains it.)")
        else:
            terminal.print(_format_list(sheet.rows))
    for note in (*sheet.notes, *sheet.hints):
        terminal.print(printable(note), max_width=sheet.max_width)


def _build_table(sheet: Sheet, gap_width: int) -> tuple[Table, int]:
    """Return the rich table of a sheet, and its width in characters if text is folded as far as possible."""
    # The separator of this box is one character wide.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap_width - 2, 0, 1))
    columns, widths = sheet.columns(), []
    for column in columns:
        width = max(map(cell_len, (column.name, *column.cells)))
        width = width if column.number else min(width, _MIN_TEXT_WIDTH)
        justify: Literal["left", "right"] = "right" if column.number else "left"
        table.add_column(column.name, justify=justify, no_wrap=column.number, overflow="fold", min_width=width)
        widths.append(width)
    first_total = len(sheet.rows) - sheet.n_totals
    for index, row in enumerate(zip(*(column.cells for column in columns), strict=True)):
        if index == first_total:
            table.add_section()
        table.add_row(*row, style="bold" if index >= first_total else None)
    return table, sum(widths) + gap_width * (len(widths) - 1)


def _format_list(rows: Sequence[Row]) -> str:
    """Return the rows one below the other: the first text column as a heading, then one line per value."""
    heading = next((header for header in rows[0] if not header.startswith(">")), next(iter(rows[0])))
    lines = []
    for row in rows:
        lines.append(f"{heading.removeprefix('>')} {format_cell(row[heading])}")
        cells = {header.removeprefix(">"): format_cell(value) for header, value in row.items() if header != heading}
        lines += [f"  {name}: {text}" for name, text in cells.items() if text]
    return "\n".join(lines)


# --- records ----------------------------------------------------------------------------------------------


def write_records(records: Iterable[Record], format_: Format, terminal: Terminal) -> None:
    """Write each record as soon as it arrives, as CSV with a header or as JSON Lines.

    Raises:
        OutputClosed: The program that reads standard output has closed it.
    """
    writer = csv.writer(terminal, lineterminator="\n")
    for index, record in enumerate(records):
        if format_ == "csv":
            if index == 0:
                writer.writerow(record)
            writer.writerow(_format_csv(value) for value in record.values())
        else:
            terminal.write(terminal.to_json(record) + "\n")


def _format_csv(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple) else value


# --- numbers ----------------------------------------------------------------------------------------------


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "epoch"), count(3000, "epoch")
        ('1 epoch', '3,000 epochs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with two decimals. None gives an empty string.

    Example:
        >>> percent(0.93456), percent(-0.0), percent(None)
        ('93.46', '0.00', '')
    """
    return "" if value is None else f"{100 * value:z.2f}"


def points(difference: float | None) -> str:
    """Return a difference between fractions in percentage points with its sign. None gives an empty string.

    Example:
        >>> points(0.0123), points(-0.5), points(-0.0), points(None)
        ('+1.23', '-50.00', '+0.00', '')
    """
    return "" if difference is None else f"{100 * difference:+z.2f}"


def interval(low: float | None, high: float | None, show: Callable[[float | None], str] = percent) -> str:
    """Return an interval of fractions, or of differences if `show` is `points`. None gives an empty string.

    Example:
        >>> interval(0.912, 0.934), interval(-0.001, 0.02, points), interval(None, None)
        ('91.20 to 93.40', '-0.10 to +2.00', '')
    """
    return "" if low is None else f"{show(low)} to {show(high)}"


def show_value(value: object, digits: int = 4) -> str:
    """Return a value as text, with floats rounded to a number of significant digits. None gives an empty string.

    Example:
        >>> show_value(0.0023117), show_value(0.0477, 2), show_value(None), show_value([16, 32])
        ('0.002312', '0.048', '', '[16, 32]')
    """
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def show_p_value(value: float | None, equals: str = "") -> str:
    """Return a p-value with two significant digits. None gives an empty string.

    Args:
        value: The p-value. Below 1e-300, floats cannot tell it from 0.
        equals: Text before the number, for a sentence.

    Example:
        >>> show_p_value(0.00231), show_p_value(0.0), show_p_value(None), f"p {show_p_value(0.0477, '= ')}"
        ('0.0023', '< 1e-300', '', 'p = 0.048')
    """
    return "" if value is None else "< 1e-300" if value < 1e-300 else f"{equals}{value:.2g}"
