"""Prepare a command that trains: device, CPU threads, progress and stop signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fmcli.cli.remedies import describe_remedy
from fmcli.cli.stop_signals import interruptible
from fmcli.cli.thread_count import set_threads

if TYPE_CHECKING:
    import torch

    from fmcli.events import Reporter
    from fmcli.report.console import Terminal


@contextmanager
def training_session(
    terminal: Terminal, device: str, threads: int | None, *, resume_flag: str, advise: bool
) -> Iterator[tuple[torch.device, Reporter]]:
    """Set the CPU threads. Within the block, display progress and stop at Ctrl-C or SIGTERM.

    Args:
        terminal: Terminal for the progress.
        device: Value of `--device`.
        threads: Value of `--threads`.
        resume_flag: Option that continues the work after a stop.
        advise: Whether to recommend fewer threads on a busy machine.

    Yields:
        The device, and the reporter of the training.
    """
    from fmcli.hardware.device import resolve_device
    from fmcli.report.progress import TrainingProgress

    resolved = resolve_device(device)
    advice = set_threads(threads, resolved, advise=advise)
    with (
        TrainingProgress(terminal, advice, describe_remedy) as progress,
        interruptible(progress, resume_flag) as report,
    ):
        yield resolved, report
