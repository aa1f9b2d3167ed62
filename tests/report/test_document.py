"""Tables at the terminal: with all columns, with narrow gaps, or as a list."""

import io

import pytest

from fmcli.report.console import Terminal
from fmcli.report.document import print_sheet
from fmcli.report.sheet import Sheet

ROWS = [{"Member": "k3", ">Accuracy": "93.96", ">Loss": "0.17"}]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (24, "Member   Accuracy   Loss\n────────────────────────\nk3          93.96   0.17\n"),
        (23, "Member  Accuracy  Loss\n──────────────────────\nk3         93.96  0.17\n"),
        (22, "Member  Accuracy  Loss\n──────────────────────\nk3         93.96  0.17\n"),
        (21, "Member k3\n  Accuracy: 93.96\n  Loss: 0.17\n"),
    ],
)
def test_a_table_is_printed_as_a_list_if_its_columns_do_not_fit(columns, shown):
    terminal = Terminal(out=io.StringIO())
    terminal.out.width = columns
    print_sheet(Sheet(rows=ROWS), terminal)
    assert terminal.out.file.getvalue() == shown
