"""Run the jobs of several members in parallel: in processes, or interleaved on CUDA streams."""

from fmcli.training.executors.cuda_streams import run_interleaved
from fmcli.training.executors.job import Job, JobResult
from fmcli.training.executors.processes import run_in_processes

__all__ = ["Job", "JobResult", "run_in_processes", "run_interleaved"]
