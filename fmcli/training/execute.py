"""Execute the plan of a run: train its members with an executor."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from fmcli.data import Splits, load_splits
from fmcli.events import EpochFinished, Reporter
from fmcli.training.claims import Claims
from fmcli.training.executors import Job, JobResult, load_executor
from fmcli.training.fingerprint import PLANNED, Fingerprint, check_fingerprint
from fmcli.training.loop import train_member
from fmcli.training.plan import RunPlan


@dataclass(frozen=True, slots=True)
class MemberTraining:
    """The work of a job: train one member of a run.

    Args:
        plan: The plan of the run.
        name: Name of the member.
        splits: The images; None if the job runs in another process, which then loads its own.
        data_root: Folder that is searched first for built-in datasets.
        save_after: Seconds between saves within one epoch.
    """

    plan: RunPlan
    name: str
    splits: Splits | None
    data_root: Path | None
    save_after: float

    def __call__(self, reporter: Reporter) -> list[EpochFinished]:
        """Train the member and return its epochs. A finished member is only checked."""
        plan = self.plan
        return train_member(
            plan.recipe,
            self.name,
            self._load_splits() if self.splits is None else self.splits,
            plan.folder / self.name,
            device=plan.device,
            traces=plan.traces[self.name],
            resume=True,
            save_after=self.save_after,
            reporter=reporter,
        )

    def _load_splits(self) -> Splits:
        """Load the images. They may have changed since the run was planned, hours ago."""
        plan = self.plan
        splits = load_splits(plan.recipe.data, self.data_root)
        member = next(member for member in plan.recipe.members if member.name == self.name)
        now = Fingerprint.of(member, plan.recipe, splits, plan.device)
        check_fingerprint(now, plan.fingerprints[self.name], PLANNED, member=self.name, folder=plan.folder)
        return splits


def execute(
    plan: RunPlan,
    claims: Claims,
    splits: Splits | None,
    reporter: Reporter,
    *,
    data_root: Path | None,
    save_after: float,
) -> Generator[JobResult]:
    """Train the members of a plan that no other process trains.

    Args:
        plan: The plan.
        claims: Claims the members.
        splits: The images. They are released if the executor uses other processes.
        reporter: Receives the events.
        data_root: Folder that is searched first for built-in datasets.
        save_after: Seconds between saves within one epoch.

    Yields:
        The epochs of each finished member, then the epochs of each member that this process trains.
    """

    def jobs(names: Iterator[str]) -> Iterator[Job]:
        for name in names:
            work = MemberTraining(plan, name, splits, data_root, save_after)
            yield Job(name, work, plan.concurrency.threads, str(plan.device))

    # Check the finished members first, to find damaged files before hours of training.
    yield from load_executor("sequential").run(jobs(iter(plan.named("finished"))), 1, reporter)
    executor = load_executor(plan.executor)
    if not executor.SHARES_PROCESS:
        splits = None  # the jobs below then load their own images
    while claims.claim_next():
        for result in executor.run(jobs(iter(claims)), plan.concurrency.jobs, reporter):
            claims.end(result.name)
            yield result
