"""How many CPU threads a command computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fmcli.report.console import Terminal


def use_threads(threads: int | None, device: torch.device, terminal: Terminal | None) -> None:
    """Compute with so many threads; where none are asked for, with torch's own number, and tell if fewer were better.

    Args:
        threads: As `--threads` says.
        device: Where to train.
        terminal: Whom to tell; None where something goes on that must keep its number.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    elif terminal is not None and device.type == "cpu" and (advice := advice_on_threads(torch.get_num_threads())):
        terminal.note(advice)


def advice_on_threads(threads: int) -> str | None:
    """Return what to tell who trains with so many threads while other programs keep half the cores busy, or more.

    The threads of an operation wait for each other at its end: where another program now and then keeps one of them
    from its core, two are slower than one (measured: two to three times).
    """
    from fmcli.cores import busy_cores, count_cores

    busy = busy_cores()
    free = max(count_cores() - busy, 1)
    if not busy or 2 * free > threads:
        return None
    programs = "another program keeps a core" if busy == 1 else f"other programs keep {busy} cores"
    return f"{programs} busy; beside that, --threads {free} may be twice as fast"
