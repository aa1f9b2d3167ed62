"""How many CPU threads a command computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def use_threads(threads: int | None, device: torch.device, *, advise: bool) -> str | None:
    """Compute with so many threads; where none are asked for, with torch's own number, but no more than cores.

    Args:
        threads: As `--threads` says.
        device: Where to train.
        advise: Look whether fewer were better; not where something goes on that must keep its number.

    Returns:
        What to tell who trains, one member after another, if fewer were better.
    """
    import torch

    if threads is None:
        limit_threads()
    elif threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    if threads is None and advise and device.type == "cpu":
        return advice_on_threads(torch.get_num_threads())
    return None


def limit_threads() -> None:
    """Compute with no more threads than cores, of which a container's share of time may leave few."""
    import torch

    from fmcli.hardware.cpu import count_cores

    if torch.get_num_threads() > count_cores():
        torch.set_num_threads(count_cores())


def advice_on_threads(threads: int) -> str | None:
    """Return what to tell who trains with so many threads while other programs keep half the cores busy, or more.

    The threads of an operation wait for each other at its end: where another program now and then keeps one of them
    from its core, two are slower than one (measured: two to three times).
    """
    from fmcli.hardware.cpu import busy_cores, count_cores

    busy = busy_cores()
    free = max(count_cores() - busy, 1)
    if not busy or 2 * free > threads:
        return None
    programs = "another program keeps a core" if busy == 1 else f"other programs keep {busy} cores"
    return f"{programs} busy; beside that, --threads {free} may be twice as fast"
