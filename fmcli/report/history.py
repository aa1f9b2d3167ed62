"""The result of `fmcli train`: the epochs of every member."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fmcli.events import EpochFinished
from fmcli.report.document import Document, Sheet, percent

_COLUMNS = [">Epoch", ">Rate", ">Loss", ">Accuracy", ">Val. loss", ">Val. accuracy", ">Seconds", ">Images/s"]


def history_document(folder: str, histories: Mapping[str, Sequence[EpochFinished]]) -> Document:
    """Return one table of epochs per member, and the folder of the run.

    Args:
        folder: The run folder.
        histories: The epochs of each member.
    """
    sheets = [
        Sheet(
            title=f"{member}, retrained for the best number of epochs" if retrained else member,
            columns=_COLUMNS,
            rows=[_epoch_row(epoch) for epoch in history if epoch.retrained == retrained],
        )
        for member, history in histories.items()
        for retrained in dict.fromkeys(epoch.retrained for epoch in history)
    ]
    last = Sheet(columns=(), rows=(), notes=[f"Run: {folder}", f"Next: fmcli ensemble evaluate {shlex.quote(folder)}"])
    records = [_epoch_record(epoch) for history in histories.values() for epoch in history]
    return Document([*sheets, last], {"run": folder, "epochs": records}, records)


def _epoch_record(epoch: EpochFinished) -> dict[str, object]:
    record = asdict(epoch)
    record["afresh"] = record.pop("retrained")  # scripts read this key
    return record


def _epoch_row(epoch: EpochFinished) -> list[str]:
    return [
        str(epoch.epoch),
        f"{epoch.lr:.2e}",
        f"{epoch.train_loss:.4f}",
        percent(epoch.train_accuracy),
        "" if epoch.validation_loss is None else f"{epoch.validation_loss:.4f}",
        percent(epoch.validation_accuracy),
        f"{epoch.seconds:.1f}",
        f"{epoch.images_per_second:,.0f}",
    ]
