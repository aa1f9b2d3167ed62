"""The result of `fmcli predict`, written image by image."""

from types import TracebackType
from typing import Any

from fmcli.choices import Format
from fmcli.ensemble.predictions import ImagePrediction
from fmcli.report.console import Terminal
from fmcli.report.document import Sheet, print_sheet, record_writer

_MAX_TABLE_ROWS = 1000  # longer results are printed as several tables, which bounds memory


class PredictionWriter:
    """Write labelled images in order. Use it as a context manager.

    Args:
        format_: Output format.
        terminal: Terminal to write to.
        top: Number of most probable classes to list for each image.
    """

    def __init__(self, format_: Format, terminal: Terminal, *, top: int) -> None:
        self.n_records = 0
        self.n_errors = 0
        self._format = format_
        self._terminal = terminal
        self._top = top
        self._rows: list[list[str]] = []
        self._write = record_writer(format_, terminal)

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close()

    def write(self, labelled: ImagePrediction) -> None:
        """Write the label of one image, or its error.

        Raises:
            OutputClosed: The reader has closed standard output.
        """
        self.n_records += 1
        self.n_errors += labelled.error is not None
        match self._format:
            case "table":
                self._rows.append(self._row(labelled))
                if len(self._rows) >= _MAX_TABLE_ROWS:
                    self._print_rows()
            case "json":  # an array with one element per line
                self._terminal.write("[\n" if self.n_records == 1 else ",\n")
                self._terminal.write(self._terminal.to_json(self._record(labelled)))
            case _:
                self._write(self._record(labelled))

    def _close(self) -> None:
        if self._format == "table" and self._rows:
            self._print_rows()
        if self._format == "json":
            self._terminal.write("\n]\n" if self.n_records else "[]\n")

    def _print_rows(self) -> None:
        columns = ["Input", "Label", ">Probability", ">Votes"]
        extra = ["Other classes"] if self._top > 1 else []
        print_sheet(Sheet(columns=[*columns, *extra], rows=self._rows), self._terminal)
        self._rows = []

    def _row(self, labelled: ImagePrediction) -> list[str]:
        name = labelled.name if labelled.index is None else f"{labelled.name}[{labelled.index}]"
        if labelled.error is not None:
            return [name, f"error: {labelled.error}", "", "", *([""] if self._top > 1 else [])]
        others = ", ".join(f"{one.label} {one.probability:.4f}" for one in labelled.top[1:])
        label = "undecided" if labelled.undecided else str(labelled.label)
        row = [name, label, f"{labelled.probability:.4f}", str(labelled.votes)]
        return [*row, others] if self._top > 1 else row

    def _record(self, labelled: ImagePrediction) -> dict[str, Any]:
        """Return the record of an image. CSV records are flat and always have the same keys."""
        record: dict[str, Any] = {"input": labelled.name, "index": labelled.index}
        result: dict[str, Any] = {
            "label": labelled.label,
            "probability": labelled.probability,
            "votes": labelled.votes,
            "undecided": labelled.undecided,
        }
        if self._format == "csv":
            others: dict[str, Any] = {
                f"{key}_{rank}": None for rank in range(2, self._top + 1) for key in ("label", "probability")
            }
            for rank, one in enumerate(labelled.top[1:], start=2):
                others |= {f"label_{rank}": one.label, f"probability_{rank}": one.probability}
            return record | result | others | {"error": labelled.error}
        if labelled.error is not None:
            return {**record, "error": labelled.error}
        if self._top > 1:
            result["top"] = [{"label": one.label, "probability": one.probability} for one in labelled.top]
        return record | result
