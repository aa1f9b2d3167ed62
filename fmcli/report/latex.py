"""Tables for LaTeX with the rules of booktabs."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from fmcli.errors import printable
from fmcli.report.sheet import Code, Column, Sheet

_MAX_FLOAT_ROWS = 40  # longer tables continue on the next page
_MAX_LINE = 40  # characters; columns with longer text are broken into lines
_WRAPPED_WIDTH = 0.6  # of the width of the page, for all columns with broken lines together
_SHRINK = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"  # only if the table is too wide

_CODE = re.compile(r"`([^`]+)`")
_GREEK = "α alpha β beta γ gamma δ delta ε varepsilon η eta κ kappa λ lambda μ mu π pi ρ rho σ sigma τ tau χ chi"
_SYMBOLS = {"×": "times", "±": "pm", "·": "cdot", "−": "-", "→": "rightarrow", "≤": "leq", "≥": "geq", "≠": "neq"}
_TEXT = {
    "\\": "backslash", "^": "asciicircum", "~": "asciitilde", "<": "less", ">": "greater", "|": "bar",
    "`": "asciigrave", "–": "endash", "—": "emdash", "‘": "quoteleft", "’": "quoteright", "“": "quotedblleft",
    "”": "quotedblright", "…": "ellipsis", "°": "degree", "²": "twosuperior", "³": "threesuperior", "µ": "mu",
}  # fmt: skip
_COMMANDS = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{character: f"\\text{name}{{}}" for character, name in _TEXT.items()},
    **{character: "$-$" if name == "-" else f"$\\{name}$" for character, name in _SYMBOLS.items()},
    **{letter: f"$\\{name}$" for letter, name in zip(*[iter(_GREEK.split())] * 2, strict=True)},
    '"': "\\symbol{34}",  # babel gives the character another meaning in some languages
}
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
_LAST_LATIN = "\u017f"  # pdflatex knows only some of the accented letters after it
_LETTERS = "ßæøœłıÆØŒŁ¡¿§¶£©®"


def format_latex(sheet: Sheet) -> str:
    r"""Return a sheet as LaTeX: a `table`, or a `longtable` if it has many rows; the title is the caption.

    A comment says which packages the preamble needs, and which characters pdflatex cannot set.

    Example:
        >>> print(format_latex(Sheet("Votes", [{"Class": "a_b", ">Votes": 3}], notes=["Ties: 1."])), end="")
        % Needs in the preamble: \usepackage{array,booktabs,graphicx}
        \begin{table}
        \centering
        \caption{Votes}
        \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
        \begin{tabular}{@{}lr@{}}
        \toprule
        Class & Votes \\
        \midrule
        a\_b & 3 \\
        \bottomrule
        \end{tabular}}
        \begin{flushleft}\footnotesize
        Ties: 1.\par
        \end{flushleft}
        \end{table}
    """
    notes = _notes(sheet.notes)
    if not sheet.rows:
        title = [f"\\textbf{{{_escape(sheet.title)}}}\\par"] if sheet.title else []
        lines = [*title, *notes]
        return "\n".join([*_describe_letters(lines), *lines, ""])
    if notes:
        notes = ["\\begin{flushleft}\\footnotesize", *notes, "\\end{flushleft}"]
    columns = sheet.columns()
    alignment = f"{{@{{}}{_alignment(columns)}@{{}}}}"
    caption = f"\\caption{{{_escape(sheet.title)}}}" if sheet.title else ""
    header = ["\\toprule", _row([_escape(column.name) for column in columns]), "\\midrule"]
    rows = list(_rows(columns, sheet.n_totals))
    if len(rows) <= _MAX_FLOAT_ROWS:
        package = "graphicx"
        lines = ["\\begin{table}", "\\centering", *([caption] if caption else []), _SHRINK]
        lines += [f"\\begin{{tabular}}{alignment}", *header, *rows, "\\bottomrule", "\\end{tabular}}"]
        lines += [*notes, "\\end{table}"]
    else:
        package = "longtable"
        lines = [f"\\begin{{longtable}}{alignment}", *([f"{caption} \\\\"] if caption else [])]
        lines += [*header, "\\endfirsthead", *header, "\\endhead", "\\bottomrule", "\\endfoot", *rows]
        lines += ["\\end{longtable}", *notes]
    needs = f"% Needs in the preamble: \\usepackage{{array,booktabs,{package}}}"
    return "\n".join([needs, *_describe_letters(lines), *lines, ""])


# --- layout -----------------------------------------------------------------------------------------------


def _alignment(columns: Sequence[Column]) -> str:
    """Return the alignment of each column. Columns with long text share a width; the text is broken into lines."""
    lengths = [0 if column.number else max(map(len, column.cells)) for column in columns]
    wrapped = [min(length, 2 * _MAX_LINE) if length > _MAX_LINE else 0 for length in lengths]
    return "".join(
        f">{{\\raggedright\\arraybackslash}}p{{{_WRAPPED_WIDTH * share / sum(wrapped):.2f}\\linewidth}}"
        if share
        else ("r" if column.number else "l")
        for column, share in zip(columns, wrapped, strict=True)
    )


def _rows(columns: Sequence[Column], n_totals: int) -> Iterable[str]:
    """Yield the rows of a table, with the totals in bold below a rule."""
    n_rows = len(columns[0].cells)
    for index in range(n_rows):
        is_total = index >= n_rows - n_totals
        if 0 < index == n_rows - n_totals:
            yield "\\midrule"
        cells = [_cell(column.cells[index], number=column.number) for column in columns]
        yield _row([f"\\textbf{{{cell}}}" if is_total and cell else cell for cell in cells])


def _row(cells: Iterable[str]) -> str:
    row = " & ".join(cells)
    return f"{'{}' if row.startswith(('[', '*')) else ''}{row} \\\\"  # `\\` before it would take them as an argument


def _notes(notes: Sequence[str]) -> list[str]:
    """Return notes as paragraphs. Items of a list are indented."""
    indents = ["\\quad " if note.startswith("  ") else "" for note in notes]
    return [f"{indent}{_escape(' '.join(note.split()))}\\par" for indent, note in zip(indents, notes, strict=True)]


# --- text -------------------------------------------------------------------------------------------------


def _cell(text: str, *, number: bool) -> str:
    if isinstance(text, Code):
        return f"\\texttt{{{_characters(text)}}}"
    if number and (power := re.fullmatch(r"(-?[\d.]+)e([+-]\d+)", text)):
        return f"${power[1]} \\times 10^{{{int(power[2])}}}$"
    indent = "\\quad " * ((len(text) - len(text.lstrip())) // 2)
    return indent + _escape(text.strip())


def _escape(text: str) -> str:
    """Return text as LaTeX. Text between backquotes is code, and a hyphen before a number is a minus sign."""
    parts = _CODE.split(printable(text))  # text, code, text, …
    return "".join(
        f"\\texttt{{{_characters(part)}}}" if index % 2 else _characters(re.sub(r"(?<![^\s(])-(?=\d)", "−", part))
        for index, part in enumerate(parts)
    )


def _characters(text: str) -> str:
    """Return text with a command for each character that needs one, and without ligatures such as `--`."""
    commands = "".join(_COMMANDS.get(one, one) for one in unicodedata.normalize("NFC", text))
    return re.sub(r"([-',])(?=\1)", r"\1{}", commands).replace(" \\%", "~\\%")


def _describe_letters(lines: Iterable[str]) -> list[str]:
    """Return a comment about the characters that pdflatex cannot set, or nothing if there are none."""
    unusual = sorted({one for line in lines for one in line if not _is_latin(one)})
    if not unusual:
        return []
    return [
        f"% pdflatex cannot set {' '.join(unusual)} - use lualatex or xelatex, with a font that has these characters"
    ]


def _is_latin(character: str) -> bool:
    """Return whether pdflatex can set a character without further packages."""
    letter, *accents = list(unicodedata.normalize("NFD", character))
    is_accented = len(accents) == 1 and accents[0] in _ACCENTS and character <= _LAST_LATIN
    return (letter.isascii() and (not accents or is_accented)) or character in _LETTERS
