"""Plan a run: which members are left to train, with which fingerprint, and how many at the same time."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fmcli.checkpoints.checkpoint import read_header
from fmcli.checkpoints.layout import MODEL_FILE
from fmcli.data import Splits
from fmcli.errors import CheckpointError, UsageError, did_you_mean, printable
from fmcli.events import MembersInParallel, UnmeasuredFeature
from fmcli.recipe import Recipe
from fmcli.training.concurrency import Concurrency, choose_concurrency
from fmcli.training.fingerprint import FINISHED, STARTED, Fingerprint, check_fingerprint
from fmcli.training.state import STATE_FILE, load_state


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that is decided before a run trains its first step.

    Args:
        recipe: The recipe.
        folder: The run's folder.
        device: The training device.
        resume: Whether files of an earlier process are used.
        members: Names of the members that the caller asked for, in recipe order.
        remaining: Names of these members that are not finished.
        concurrency: How members train in parallel; None trains them one at a time in this process.
        fingerprints: The fingerprint of each member of the recipe.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    resume: bool
    members: Sequence[str]
    remaining: Sequence[str]
    concurrency: Concurrency | None
    fingerprints: dict[str, Fingerprint]

    @property
    def uses_streams(self) -> bool:
        """Whether parallel members share this process, each on its own CUDA stream.

        Processes would take turns of milliseconds on the GPU, and only one would compute at a time.
        """
        return self.device.type == "cuda"

    def events(self, *, report_jobs: bool) -> Iterator[UnmeasuredFeature | MembersInParallel]:
        """Yield the features in use that have not been measured on a GPU, and how members train in parallel.

        Args:
            report_jobs: Yield the number of parallel members, because the caller did not choose it.
        """
        chosen = self.concurrency
        is_parallel = chosen is not None and chosen.jobs > 1
        if self.uses_streams and is_parallel:
            yield UnmeasuredFeature("parallel-members")
        graphs = {member.name for member in self.recipe.members if member.trainer.cuda_graph}
        if self.device.type == "cuda" and graphs.intersection(self.remaining):
            yield UnmeasuredFeature("cuda-graph")
        if chosen is not None and is_parallel and report_jobs:
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
    members: Sequence[str],
    folder: Path,
    splits: Splits,
    device: torch.device,
    *,
    resume: bool,
    jobs: int | None,
    threads: int | None,
) -> RunPlan:
    """Return the plan of a run. Nothing is written.

    Args:
        recipe: The recipe.
        members: Names of the members to train, in recipe order.
        folder: The run's folder.
        splits: The images.
        device: The training device.
        resume: Use the files of an earlier process.
        jobs: Members to train in parallel; None chooses the number.
        threads: CPU threads per member; None chooses the number.

    Raises:
        CheckpointError: The remaining members would be trained differently from the finished part of the run.
    """
    finished = [one.name for one in recipe.members if resume and (folder / one.name / MODEL_FILE).is_file()]
    remaining = [name for name in members if name not in finished]
    earlier = _read_earlier(folder, recipe, finished, remaining) if resume and remaining else {}
    run_threads = next((fingerprint.threads for fingerprint in earlier.values()), None)
    concurrency = choose_concurrency(
        recipe, remaining, splits, device, jobs=jobs, threads=threads, run_threads=run_threads
    )
    fingerprints = compute_fingerprints(recipe, splits, device, None if concurrency is None else concurrency.threads)
    for name, fingerprint in earlier.items():
        wording = STARTED if name in remaining else FINISHED
        check_fingerprint(fingerprints[name], fingerprint, wording, member=name, folder=folder)
    return RunPlan(recipe, folder, device, resume, members, remaining, concurrency, fingerprints)


def compute_fingerprints(
    recipe: Recipe, splits: Splits, device: torch.device, threads: int | None = None
) -> dict[str, Fingerprint]:
    """Return the fingerprint of each member of a recipe.

    Args:
        recipe: The recipe.
        splits: The images.
        device: The training device.
        threads: Number of CPU threads. Default: the number of this process.
    """
    return {member.name: Fingerprint.of(member, recipe, splits, device, threads) for member in recipe.members}


def _read_earlier(
    folder: Path, recipe: Recipe, finished: Sequence[str], remaining: Sequence[str]
) -> dict[str, Fingerprint]:
    """Return the recorded fingerprint of each finished or partly trained member.

    Raises:
        CheckpointError: A file is damaged or has no fingerprint. Damaged state files of members that are not trained
            now are skipped.
    """
    earlier = {}
    for name in (member.name for member in recipe.members):
        if name in finished:
            earlier[name] = Fingerprint.of_header(read_header(folder / name))
        elif (state := folder / name / STATE_FILE).is_file():
            with nullcontext() if name in remaining else suppress(CheckpointError):
                earlier[name] = load_state(state).fingerprint
    return earlier
