"""Several pieces of work at once: each in a process of its own (`processes`), or in turns within this one (`cuda_streams`)."""

from fmcli.training.executors.cuda_streams import run_interleaved
from fmcli.training.executors.job import Job, JobResult
from fmcli.training.executors.processes import run_in_processes

__all__ = ["JobResult", "Job", "run_in_processes", "run_interleaved"]
