"""Describe the machine and its software, and measure its fastest matrix product and copy."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import fmcli
from benchmarks.peers import Answer, Job, main

PACKAGES = ("torch", "torchvision", "keras", "tensorflow", "numpy", "numba")
ROOT = Path(__file__).parent.parent


def describe() -> dict[str, Any]:
    """Return hardware, versions and commit."""
    import torch

    facts = _cpu_facts()
    cuda = torch.cuda.is_available()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cpu_bf16": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in facts.get("flags", "").split()],
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "driver": _driver() if cuda else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {"fmcli": fmcli.__version__, **_versions()},
        "commit": commit(),
    }


def _driver() -> str | None:
    """Return the version of the GPU driver, or None if nvidia-smi fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.partition("\n")[0].strip() or None


def _cpu_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_gib() -> float | None:
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def commit() -> str | None:
    """Return the commit, followed by `+` if tracked files differ from it, or None outside a checkout."""
    try:
        head, changes = [
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")


def limits(job: Job) -> Answer:
    """Return the highest rate of matrix products in bf16 and fp32, and of memory copies."""
    import torch

    torch.set_num_threads(job.threads)
    on_gpu = job.device == "cuda"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    answer: Answer = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        rates = []
        for side in (4096, 8192, 16384) if on_gpu else (1024, 2048, 4096):
            left, right = (torch.randn(side, side, device=job.device).to(dtype) for _ in range(2))
            rates.append(
                2 * side**3 / _shortest_time(lambda a=left, b=right: torch.mm(a, b), job.seconds / 8, synchronize)
            )
        answer[f"{name}_operations_per_second"] = max(rates)
    source = torch.ones(2**30 if on_gpu else 2**26, device=job.device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()  # read and written
    answer["copied_bytes_per_second"] = moved / _shortest_time(
        lambda: target.copy_(source), job.seconds / 8, synchronize
    )
    return answer


def _shortest_time(action: Callable[[], object], seconds: float, synchronize: Callable[[], object]) -> float:
    """Return the shortest time of at least three runs in seconds, after one warm-up run."""
    action()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        synchronize()
        started = time.perf_counter()
        action()
        synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main({"limits": limits})
