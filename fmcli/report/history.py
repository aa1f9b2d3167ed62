"""The result of `fmcli train`: the epochs of every member."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fmcli.events import EpochFinished
from fmcli.report.document import Document, percent
from fmcli.report.sheet import Row, Sheet


def history_document(
    folder: str, histories: Mapping[str, Sequence[EpochFinished]], elsewhere: Sequence[str] = ()
) -> Document:
    """Return one table of epochs per member, and the folder of the run.

    Args:
        folder: The run folder.
        histories: The epochs of each member.
        elsewhere: Names of the members that other processes are still training.
    """
    sheets = [
        Sheet(
            title=f"{member}, retrained for the best number of epochs" if retrained else member,
            rows=[_epoch_row(epoch) for epoch in history if epoch.retrained == retrained],
        )
        for member, history in histories.items()
        for retrained in dict.fromkeys(epoch.retrained for epoch in history)
    ]
    notes = [f"Run: {folder}"]
    if elsewhere:
        notes.append(f"Still in training by other processes: {', '.join(elsewhere)}")
    next_command = f"Next: fmcli ensemble evaluate {shlex.quote(folder)}"
    records = [asdict(epoch) for history in histories.values() for epoch in history]
    payload = {"run": folder, "epochs": records, "training_elsewhere": list(elsewhere)}
    return Document([*sheets, Sheet(notes=notes, hints=[next_command])], payload, records)


def _epoch_row(epoch: EpochFinished) -> Row:
    return {
        ">Epoch": epoch.epoch,
        ">Rate": f"{epoch.lr:.2e}",
        ">Loss": f"{epoch.train_loss:.4f}",
        ">Accuracy": percent(epoch.train_accuracy),
        ">Val. loss": None if epoch.validation_loss is None else f"{epoch.validation_loss:.4f}",
        ">Val. accuracy": percent(epoch.validation_accuracy),
        ">Seconds": f"{epoch.seconds:.1f}",
        ">Images/s": round(epoch.images_per_second),
    }
