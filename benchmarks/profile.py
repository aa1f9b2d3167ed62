"""Show which operators take the time of a training step.

    python -m benchmarks.profile roy-1
    python -m benchmarks.profile m5 --device cuda --augment

On a CPU, the table shows the operators of the training thread. An operator that calls our own kernels includes their
time. The row "between operators" is time in Python. Profiling makes small operators slower. On a GPU, the table shows
the GPU's kernels, and the row "between operators" is idle time.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.markdown import heading, row
from benchmarks.peers import Job
from benchmarks.peers.fmcli_peer import run
from benchmarks.run import write_images
from benchmarks.works import WORKS, load_work
from fmcli.hardware.cpu import count_cores

WARM_UP_STEPS = 20  # a CUDA graph is recorded within these steps
NAME_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of an operator per step.

    Args:
        name: Name of the operator, or of the kernel on a GPU.
        calls: Mean number of calls per step.
        seconds: Time per step in seconds, without nested operators.
    """

    name: str
    calls: float
    seconds: float


class StepProfiler:
    """Profile training steps after a warm-up.

    Args:
        n_steps: Number of profiled steps.
        device: `cpu` or `cuda`.
    """

    def __init__(self, n_steps: int, device: str) -> None:
        self.n_steps, self.device = n_steps, device
        activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
        self.profiler = profile(activities=[activity], acc_events=True)  # torch 2.10 warns without acc_events
        self.step, self.seconds = 0, 0.0

    def is_last_step(self) -> bool:
        """Count a finished step. Return whether it was the last one to profile."""
        self.step += 1
        is_last = self.step == WARM_UP_STEPS + self.n_steps
        if self.device == "cuda" and (is_last or self.step == WARM_UP_STEPS):
            torch.cuda.synchronize()
        if self.step == WARM_UP_STEPS:
            self.profiler.start()
            self.seconds -= time.perf_counter()
        if is_last:
            self.seconds += time.perf_counter()
            self.profiler.stop()
        return is_last

    def costs(self) -> list[Cost]:
        """Return the costs of all operators in descending order."""
        return sum_up(self.profiler.key_averages(), self.n_steps, on_gpu=self.device == "cuda")


def sum_up(events: Iterable[FunctionEventAvg], n_steps: int, *, on_gpu: bool) -> list[Cost]:
    """Return the cost of each operator, or of each kernel on a GPU, in descending order."""
    costs = [
        Cost(event.key, event.count / n_steps, microseconds / 1e6 / n_steps)
        for event in events
        if (event.device_type == DeviceType.CUDA) == on_gpu
        and not event.is_user_annotation  # contains kernels that count separately
        and (microseconds := event.self_device_time_total if on_gpu else event.self_cpu_time_total)
    ]
    return sorted(costs, key=lambda cost: -cost.seconds)


def build(costs: Sequence[Cost], step_seconds: float, n_rows: int) -> Iterator[str]:
    """Yield the lines of a table: the slowest operators, the sum of the faster ones, and the time between operators."""
    faster = costs[n_rows:]
    shown = [
        *costs[:n_rows],
        Cost(f"{len(faster)} more", sum(one.calls for one in faster), sum(one.seconds for one in faster)),
        Cost("between operators", 0, step_seconds - sum(one.seconds for one in costs)),
        Cost("whole step", 0, step_seconds),
    ]
    yield from heading(["operator", "calls per step", "µs per step", "share"])
    for cost in shown:
        name = cost.name if len(cost.name) <= NAME_LENGTH else f"{cost.name[: NAME_LENGTH - 1]}…"
        calls = f"{cost.calls:.1f}" if cost.calls else ""
        yield row([f"`{name}`", calls, f"{cost.seconds * 1e6:,.0f}", f"{100 * cost.seconds / step_seconds:.1f} %"])


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--augment", action="store_true", help="augment with rotation and translation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    profiler = StepProfiler(options.steps, options.device)
    with TemporaryDirectory() as folder:
        write_images(Path(folder))
        job = Job("train", f"{folder}/all", augment=options.augment, device=options.device, threads=options.threads)
        run(job, load_work(options.work, augment=options.augment), 10**6, profiler.is_last_step)
    print("\n".join(build(profiler.costs(), profiler.seconds / options.steps, options.rows)))


if __name__ == "__main__":
    main()
