"""Set the number of CPU threads and recommend a smaller number on a busy machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def set_threads(threads: int | None, device: torch.device, *, advise: bool) -> str | None:
    """Set the number of CPU threads that torch uses.

    Args:
        threads: Value of `--threads`. None: torch's default, at most one per core.
        device: Device that trains.
        advise: Whether to look for a faster number. False for a resumed run, which must keep its number.

    Returns:
        A recommendation to use fewer threads when members train one at a time, or None.
    """
    import torch

    if threads is not None:
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return None
    limit_threads()
    return thread_advice(torch.get_num_threads()) if advise and device.type == "cpu" else None


def limit_threads() -> None:
    """Use at most one thread per core. A container can have fewer cores than the machine."""
    import torch

    from fmcli.hardware.cpu import count_cores

    if torch.get_num_threads() > count_cores():
        torch.set_num_threads(count_cores())


def thread_advice(threads: int) -> str | None:
    """Recommend fewer threads if other programs are using at least half of the cores.

    The threads of one operation wait for each other when it ends. If another program takes the core of one thread now
    and then, two threads are slower than one (measured: by a factor of 2 to 3).

    Args:
        threads: Number of threads that training will use.

    Returns:
        The recommendation, or None if enough cores are free.
    """
    from fmcli.hardware.cpu import busy_cores, count_cores

    busy = busy_cores()
    free = max(count_cores() - busy, 1)
    if not busy or 2 * free > threads:
        return None
    users = "another program is using a core" if busy == 1 else f"other programs are running {busy} threads"
    return f"{users}; --threads {free} may be twice as fast"
