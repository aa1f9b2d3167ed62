"""Plan a run: what happens to each member, with which fingerprint, and how many train at the same time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import read_header
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.choices import ExecutorName
from fmcli.data import Splits
from fmcli.errors import CheckpointError, UsageError, did_you_mean, printable
from fmcli.events import MembersInParallel, PlannedMember, RunJoined, UnmeasuredFeature
from fmcli.recipe import MemberSpec, Recipe
from fmcli.recipe.layers import Backbone
from fmcli.training.claims import read_claim
from fmcli.training.concurrency import (
    PROCESS_START_S,
    Concurrency,
    Traces,
    choose_concurrency,
    estimate_member_seconds,
    limit_jobs,
    total_seconds,
)
from fmcli.training.executors import load_executor
from fmcli.training.fingerprint import CLAIMED, FINISHED, STARTED, Fingerprint, Wording, check_fingerprint
from fmcli.training.recipe_checks import check_recipe
from fmcli.training.run_folder import check_run
from fmcli.training.state import STATE_FILE, load_state


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that is decided before a run trains its first step. It can be pickled.

    Args:
        recipe: The recipe.
        folder: The run's folder.
        device: The training device.
        members: The members that the caller asked for, in recipe order.
        in_use: Names of the members that other processes have locked.
        executor: Name of the executor that trains the members.
        concurrency: How many members train at the same time, with how many threads.
        fingerprints: The fingerprint of each member of the recipe.
        traces: The layers of each member's network.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    members: Sequence[PlannedMember]
    in_use: Sequence[str]
    executor: ExecutorName
    concurrency: Concurrency
    fingerprints: Mapping[str, Fingerprint]
    traces: Traces

    def named(self, *states: str) -> list[str]:
        """Return the names of the members in these states."""
        return [one.member for one in self.members if one.state in states]

    @property
    def seconds(self) -> float | None:
        """Estimated time until this process has trained all members that are free now; None if unknown."""
        seconds = [one.seconds for one in self.members if one.state in ("resumes", "starts")]
        known = [one for one in seconds if one is not None]
        start_s = 0 if load_executor(self.executor).SHARES_PROCESS else PROCESS_START_S
        return total_seconds(known, self.concurrency.jobs, start_s=start_s) if len(known) == len(seconds) else None

    def events(self, *, report_jobs: bool) -> Iterator[RunJoined | UnmeasuredFeature | MembersInParallel]:
        """Yield the events for the user before training.

        These are other processes that train the run, features that have not been measured on a GPU, and how many
        members train in parallel.

        Args:
            report_jobs: Yield the number of parallel members, because the caller did not choose it.
        """
        if self.in_use:
            yield RunJoined(self.folder, self.in_use)
        chosen, remaining = self.concurrency, self.named("starts", "resumes")
        is_parallel = chosen.jobs > 1 and bool(remaining)
        if self.device.type == "cuda" and is_parallel:
            yield UnmeasuredFeature("parallel-members")
        graphs = {member.name for member in self.recipe.members if member.trainer.cuda_graph}
        if self.device.type == "cuda" and graphs.intersection(remaining):
            yield UnmeasuredFeature("cuda-graph")
        if is_parallel and report_jobs:
            yield MembersInParallel(chosen.jobs, chosen.threads, chosen.speedup)


def choose_members(recipe: Recipe, wanted: Sequence[str]) -> list[str]:
    """Return the names of the members to train, in recipe order.

    Args:
        recipe: The recipe.
        wanted: Names that the caller asked for; empty for all.

    Raises:
        UsageError: The recipe has no such member.
    """
    names = [member.name for member in recipe.members]
    for name in wanted:
        if name not in names:
            raise UsageError(
                f"recipe {printable(recipe.name)} has no member {printable(name)!r}", hint=did_you_mean(name, names)
            )
    return [name for name in names if not wanted or name in wanted]


def plan_run(
    recipe: Recipe,
    folder: Path,
    splits: Splits,
    device: torch.device,
    *,
    members: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    join: bool = True,
    jobs: int | None = 1,
    threads: int | None = None,
    executor: ExecutorName | None = None,
    traces: Traces | None = None,
) -> RunPlan:
    """Return the plan of a run, without side effects. The caller holds the lock of the run; see `locked_if_used`.

    Args:
        recipe: The recipe.
        folder: The run's folder.
        splits: The images.
        device: The training device.
        members: Names of the members to train; empty for all.
        resume: Continue the run in the folder.
        overwrite: Plan as if the folder were empty.
        join: Train the run together with other processes.
        jobs: Members to train in parallel; None chooses the number.
        threads: CPU threads per member; None chooses the number.
        executor: Name of the executor; None chooses it.
        traces: The layers of each member's network. Default: check the recipe and trace them.

    Raises:
        UsageError, RunInUseError: See `check_run`.
        RecipeError: See `check_recipe`.
        CheckpointError: The remaining members would be trained differently from the finished part of the run.
    """
    jobs = limit_jobs(executor, jobs)
    names = choose_members(recipe, members)
    traces = check_recipe(recipe, splits) if traces is None else traces
    in_use = check_run(folder, recipe, members=members, resume=resume, overwrite=overwrite, join=join)
    kept = () if overwrite else recipe.members
    finished = [member.name for member in kept if (folder / member.name / MODEL_FILE).is_file()]
    unfinished = [name for name in names if name not in finished]
    earlier = _read_earlier(folder, kept, finished, in_use, unfinished) if unfinished else {}
    free = [name for name in unfinished if name not in in_use] or unfinished
    run_threads = next((one.fingerprint.threads for one in earlier.values()), None)
    concurrency = choose_concurrency(
        recipe, free, splits, traces, device, jobs=jobs, threads=threads, run_threads=run_threads
    ) or Concurrency(1, threads or torch.get_num_threads())
    executor = executor or _choose_executor(concurrency.jobs, device)
    if concurrency.jobs > 1 and load_executor(executor).SHARES_PROCESS:
        concurrency = replace(concurrency, threads=torch.get_num_threads())
    fingerprints = {
        member.name: Fingerprint.of(member, recipe, splits, device, concurrency.threads) for member in recipe.members
    }
    for name, one in earlier.items():
        check_fingerprint(fingerprints[name], one.fingerprint, one.wording, member=name, folder=folder)
    plan = RunPlan(recipe, folder, device, (), in_use, executor, concurrency, fingerprints, traces)
    return replace(plan, members=[_plan_member(plan, name, len(splits.train), finished, earlier) for name in names])


def _plan_member(
    plan: RunPlan, name: str, n_images: int, finished: Sequence[str], earlier: Mapping[str, "_Earlier"]
) -> PlannedMember:
    """Return the plan for a member."""
    if name in finished:
        return PlannedMember(name, "finished")
    if name in plan.in_use:
        return PlannedMember(name, "claimed")
    member = next(member for member in plan.recipe.members if member.name == name)
    saved = earlier.get(name)
    epochs, steps = (saved.epochs, saved.steps) if saved else (0, 0)
    traces, threads, precision = plan.traces[name], plan.concurrency.threads, plan.fingerprints[name].precision
    # The estimate counts multiply-adds, but networks of torchvision spend much of the time between them.
    has_estimate = plan.device.type == "cpu" and not any(isinstance(trace.layer, Backbone) for trace in traces)
    seconds = estimate_member_seconds(
        member, traces, n_images, threads, precision, epochs_done=epochs, steps_done=steps
    )
    return PlannedMember(
        name,
        "resumes" if saved else "starts",
        epoch=epochs + 1,
        steps_done=steps,
        threads=threads,
        seconds=seconds if has_estimate else None,
    )


@dataclass(frozen=True, slots=True)
class _Earlier:
    """How another process has trained a member, or is training it.

    Args:
        fingerprint: Its fingerprint.
        wording: Describes the process in a message.
        epochs: Number of epochs that are saved.
        steps: Number of saved steps of the next epoch.
    """

    fingerprint: Fingerprint
    wording: Wording
    epochs: int = 0
    steps: int = 0


def _read_earlier(
    folder: Path,
    members: Sequence[MemberSpec],
    finished: Sequence[str],
    in_use: Sequence[str],
    unfinished: Sequence[str],
) -> dict[str, _Earlier]:
    """Return the records of each member that a process has trained or started.

    Raises:
        CheckpointError: A file is damaged or has no fingerprint. Damaged state files of members that are not trained
            now are skipped.
    """
    earlier = {}
    for name in (member.name for member in members):
        path = folder / name
        if name in finished:
            earlier[name] = _Earlier(Fingerprint.of_header(read_header(path)), FINISHED)
        elif name in in_use:
            if (claim := read_claim(path)) is not None:
                earlier[name] = _Earlier(claim, CLAIMED)
        elif (path / STATE_FILE).is_file():
            with nullcontext() if name in unfinished else suppress(CheckpointError):
                state = load_state(path / STATE_FILE)
                epochs = sum(epoch.retrained == state.retrained for epoch in state.history)
                steps = 0 if state.progress is None else state.progress.steps
                earlier[name] = _Earlier(state.fingerprint, STARTED, epochs, steps)
    return earlier


def _choose_executor(jobs: int, device: torch.device) -> ExecutorName:
    return "sequential" if jobs == 1 else "cuda_streams" if device.type == "cuda" else "processes"
