"""Markdown and LaTeX of sheets."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from fmcli.report.latex import format_latex
from fmcli.report.markdown import format_markdown
from fmcli.report.sheet import Code, Sheet

SHEET = Sheet(
    title="Vote of 2 members_50 %",
    rows=[
        {"Class": "T|shirt & <b>", ">F1": "-0.1", ">n": 1000},
        {"Class": Code("a_b`#"), ">F1": "1.5e-07", ">n": None},
        {"Class": "average", ">F1": "0.5", ">n": 1000},
    ],
    n_totals=1,
    notes=["1. Uses `trainer.seed`.", "  first item", "  second item"],
    hints=["Next: fmcli evaluate x"],
)


def test_markdown_has_bold_totals_escaped_text_and_no_hints() -> None:
    assert format_markdown(SHEET).split("\n") == [
        "**Vote of 2 members_50 %.**",
        "",
        "| Class | F1 | n |",
        "|---|---:|---:|",
        r"| T\|shirt & \<b> | -0.1 | 1,000 |",
        "| ``a_b`#`` | 1.5e-07 | |",
        "| **average** | **0.5** | **1,000** |",
        "",
        r"1\. Uses `trainer.seed`.",
        "",
        "- first item",
        "- second item",
        "",
    ]


def test_latex_has_bold_totals_escaped_text_and_no_hints() -> None:
    text = format_latex(SHEET)
    assert r"\caption{Vote of 2 members\_50~\%}" in text
    assert r"T\textbar{}shirt \& \textless{}b\textgreater{} & $-$0.1 & 1,000 \\" in text
    assert r"\texttt{a\_b\textasciigrave{}\#} & $1.5 \times 10^{-7}$ &  \\" in text
    assert "\\midrule\n\\textbf{average} & \\textbf{0.5} & \\textbf{1,000} \\\\\n\\bottomrule" in text
    assert "Uses \\texttt{trainer.seed}.\\par\n\\quad first item\\par" in text
    assert "Next:" not in text


def test_a_long_latex_table_continues_on_the_next_page() -> None:
    assert "\\begin{longtable}{@{}r@{}}" in format_latex(Sheet(rows=[{">Image": index} for index in range(41)]))


@example(["\\|", "a`b"], False)
@example(["\\|", ""], True)
@given(st.lists(st.text(), min_size=2, max_size=2), st.booleans())
def test_no_cell_changes_the_number_of_columns(cells: list[str], code: bool) -> None:
    sheet = Sheet(rows=[{"One": Code(cells[0]) if code else cells[0], "Two": cells[1]}], n_totals=int(not code))
    page = MarkdownIt("commonmark").enable("table").render(format_markdown(sheet))
    assert (page.count("<tr>"), page.count("<th"), page.count("<td")) == (2, 3, 2)  # one <thead>

    row = format_latex(sheet).split("\\midrule\n")[-1].split("\n\\bottomrule")[0]
    plain = re.sub(r"\\(\\|[{}$&#_%]|[a-zA-Z]+)", "", row)
    assert plain.count("&") == 1
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not set("#%~\\") & set(plain.replace("~", "", row.count("~\\%")))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_compiles_each_kind_of_table(tmp_path: Path) -> None:
    specials = "".join(map(chr, range(32, 127))) + "×±·−→≤≥≠αμ–—‘’“”…°²³µéßø -- '' ,, \\begin{x}"
    sheets = [
        SHEET,
        Sheet(
            specials, [{specials: specials, ">Number": "-1"}, {specials: "[x] `code`"}, {specials: "*"}], 1, [specials]
        ),
        Sheet("long", [{"Layer": "    conv", ">Images": index} for index in range(60)], notes=["A note."]),
        Sheet("wide", [{f">Column {index}": 10**9 for index in range(20)}]),
        Sheet("title only", notes=["text"]),
    ]
    tables = [format_latex(sheet) for sheet in sheets]
    packages = sorted(set(re.findall(r"^% Needs in the preamble: (.*)$", "\n".join(tables), re.MULTILINE)))
    document = ["\\documentclass{article}", *packages, "\\begin{document}", *tables, "\\end{document}"]
    (tmp_path / "tables.tex").write_text("\n".join(document), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    output = done.stdout.decode("latin-1")
    assert done.returncode == 0, output[-3000:]
