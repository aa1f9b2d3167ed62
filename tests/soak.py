"""Long trials of what must not get lost, each with as many rounds as asked for.

    python -m tests.soak kills 200
    python -m tests.soak all            # as many rounds of each as stand in LONG; hours

Prints one JSON object for each trial: how often it was done, and what went wrong. Every process is forked from this
one, which has the libraries loaded and computes nothing itself, so that a round takes no start-up. `test_soak.py` runs
short forms.
"""

import argparse
import errno
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fmcli.training.loop
from fmcli.checkpoints.history import HISTORY_FILE, read_history
from fmcli.checkpoints.tensors import load_tensors
from fmcli.cli import run
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import ExitStatus, FmcliError
from fmcli.recipe import Recipe, load_recipe
from fmcli.training import SAVE_INTERVAL_S, VALIDATION_FILE
from fmcli.training.run import train_run
from tests.helpers import TINY_RECIPE, draw_quadrants, write_idx_folder

CPU = torch.device("cpu")
LONG = {
    "kills": 200,
    "side-by-side": 20,
    "points": 1000,
    "full-disks": 1000,
    "signals": 100,
    "races": 50,
    "paths": 1_000_000,
}
WRITING = ((tempfile, "mkstemp"), (os, "fsync"), (os, "chmod"), (os, "replace"))  # what `write_atomic` calls
MEMBERS = """
[[members]]
name = "averaged"
model.kernel_size = 3
augment = { flip = 0.5, shift = 1 }
trainer = { weight_average = 0.9 }

[[members]]
name = "stopped"
model.kernel_size = 3
trainer = { epochs = 6, patience = 1, keep = "best" }

[[members]]
name = "cycled"
model.kernel_size = 5
schedule = { name = "cyclic", cycles = 3 }
trainer = { keep = "snapshots" }
"""
Work = Callable[[], object]


class Soak:
    """A recipe of three members, what its uninterrupted run leaves, and a place for broken ones.

    Args:
        folder: To write into.
        seed: Draws the instants.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        fmcli.training.loop.MAX_SAVING_SHARE = (
            math.inf
        )  # save after every epoch: how often must not depend on the clock
        self.folder, self.draw = folder, random.Random(seed)
        self.problems: list[str] = []
        images = write_idx_folder(folder / "images", *draw_quadrants(240, seed=1), test=draw_quadrants(40, seed=2))
        self.file = folder / "soak.toml"
        self.file.write_text(TINY_RECIPE.format(folder=images).split("\n[[members]]")[0] + MEMBERS, "utf-8")
        self.recipe: Recipe = load_recipe(str(self.file))
        self.count = 0
        started = time.perf_counter()
        assert finish(self.fork(lambda: self.train(folder / "whole"))) == 0
        self.seconds = time.perf_counter() - started
        self.whole = fingerprint(folder / "whole")

    def train(self, place: Path, *, save_after: float = SAVE_INTERVAL_S, jobs: int = 1) -> None:
        """Train, or go on."""
        train_run(self.recipe, place, device=CPU, resume=True, save_after=save_after, jobs=jobs, threads=1)

    def command(self, place: Path, says: Path = Path(os.devnull)) -> None:
        """Do the same by the command, and leave the process as it does."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(says, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        words = ["train", "--recipe", str(self.file), "--output", str(place), "--resume", "--device", "cpu", "--quiet"]
        sys.exit(run(words))

    def fork(self, work: Work) -> int:
        """Do some work in another process and return its number; its exit status is 99 for a fault, told with it."""
        child = os.fork()
        if child:
            return child
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        except FmcliError as error:
            os._exit(error.exit_status)
        except BaseException:
            traceback.print_exc()
            os._exit(99)

    def place(self) -> Path:
        """Return a folder that is not there yet."""
        self.count += 1
        return self.folder / f"run-{self.count}"

    def check(self, condition: bool, problem: str) -> None:
        """Note what went wrong."""
        if not condition:
            self.problems.append(problem)

    def check_files(self, place: Path, when: str) -> None:
        """Find whatever is half-written."""
        for path in place.rglob("[!.]*"):
            try:
                if path.name == VALIDATION_FILE:
                    load_predictions(path)
                elif path.suffix == ".safetensors":
                    load_tensors(path)
                elif path.name == HISTORY_FILE:
                    read_history(path.parent)
                elif path.suffix == ".toml":
                    load_recipe(str(path))
            except Exception as error:  # whatever it is, it is what is looked for
                self.problems.append(f"{when}: {path} is not whole: {error}")

    def check_ends_like_the_whole(self, place: Path, when: str) -> None:
        """Go on to the end and compare every file with that of the uninterrupted run."""
        self.check(finish(self.fork(lambda: self.train(place))) == 0, f"{when}: does not go on")
        found = fingerprint(place)
        wrong = [name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name)]
        self.check(not wrong, f"{when}: differs in {', '.join(sorted(wrong))}")


def finish(child: int) -> int:
    """Wait for a process and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(place: Path) -> dict[str, str]:
    """Return a digest of each file of a run, hidden ones too but for the lock; times do not count."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.name == HISTORY_FILE:
            epochs = [asdict(replace(epoch, seconds=0, images_per_second=0)) for epoch in read_history(path.parent)]
            found[str(path.relative_to(place))] = json.dumps(epochs)
        elif path.is_file() and path.name != ".lock":
            found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --- kills ------------------------------------------------------------------------------------------------


def kills(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill a training at random instants, half of them while it saves its state after each step."""
    done, ends, place = 0, 0, soak.place()
    while done < rounds:
        killed = kill_once(soak, place, each_step=soak.draw.random() < 0.5)
        done += killed
        soak.check_files(place, f"kill {done}")
        if not killed or done == rounds:
            soak.check_ends_like_the_whole(place, f"after kill {done}")
            ends, place = ends + 1, soak.place()
    return {"kills": done, "runs": ends}


def kill_once(soak: Soak, place: Path, *, each_step: bool) -> bool:
    """Go on with a training and kill it; tell whether it was not done before."""

    def work() -> None:
        soak.train(place, save_after=0.0 if each_step else SAVE_INTERVAL_S)

    child = soak.fork(work)
    time.sleep(soak.draw.uniform(0, soak.seconds))
    os.kill(child, signal.SIGKILL)
    status = finish(child)
    soak.check(status in (0, -signal.SIGKILL), f"a training to be killed left with {status}")
    return status == -signal.SIGKILL


def run_in_processes(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill a training of members side by side at random instants: in turn all of it, and one of its processes."""
    place, ends, killed = soak.place(), 0, {"parents": 0, "members": 0}
    while sum(killed.values()) < rounds:
        child = soak.fork(lambda place=place: soak.train(place, save_after=0.0, jobs=2))
        whom = "parents" if killed["parents"] <= killed["members"] else "members"
        victims: list[int] = []
        until = time.perf_counter() + soak.draw.uniform(0, 2 * soak.seconds)
        while not victims or time.perf_counter() < until:  # processes that are spawned take a while to begin
            victims = [child] if whom == "parents" else children(child)
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        else:
            os.kill(soak.draw.choice(victims), signal.SIGKILL)
            status = finish(child)
            soak.check(
                status == (-signal.SIGKILL if whom == "parents" else ExitStatus.FAILED),
                f"killed {whom}: left with {status}",
            )
            killed[whom] += 1
            time.sleep(0.5)  # for what has lost its parent to end
            soak.check_files(place, f"killed {whom}")
            continue
        soak.check_ends_like_the_whole(place, "in the end")
        ends, place = ends + 1, soak.place()
    soak.check_ends_like_the_whole(place, "in the end")
    return {**killed, "runs": ends + 1}


def children(process: int) -> list[int]:
    """Return the processes that a process began and that live, but for those that keep account of what is shared."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


@contextmanager
def watched(act: Work, at: int, *, after: bool = False) -> Iterator[Callable[[], int]]:
    """Act before or after the nth call of those that write files; yields how many there were."""
    calls = 0

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            due = calls == at
            if due and not after:
                act()
            result = function(*arguments, **options)
            if due and after:
                act()
            return result

        return call

    before = [(module, name, getattr(module, name)) for module, name in WRITING]
    for module, name, function in before:
        setattr(module, name, watch(function))
    try:
        yield lambda: calls
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def draw_points(soak: Soak, rounds: int) -> tuple[int, list[int]]:
    """Return how often an uninterrupted training calls what writes files, and some of these calls, or all."""
    answer, place = soak.folder / "calls", soak.place()

    def work() -> None:
        with watched(lambda: None, 0) as calls:
            soak.train(place)
        answer.write_text(str(calls()))

    assert finish(soak.fork(work)) == 0
    total = int(answer.read_text())
    return total, sorted(soak.draw.sample(range(1, total + 1), min(rounds, total)))


def points(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill a training before and after each call that writes a file, in turn, or at some of them."""

    def kill_at(point: int, *, after: bool) -> None:
        place, when = soak.place(), f"{'after' if after else 'before'} call {point}"

        def work() -> None:
            with watched(lambda: os.kill(os.getpid(), signal.SIGKILL), point, after=after):
                soak.train(place)

        soak.check(finish(soak.fork(work)) == -signal.SIGKILL, f"{when}: not reached")
        soak.check_files(place, when)
        soak.check_ends_like_the_whole(place, when)

    total, chosen = draw_points(soak, rounds)
    for point in chosen:
        kill_at(point, after=False)
        kill_at(point, after=True)
    return {"calls": total, "kills": 2 * len(chosen)}


# --- disks that are full ----------------------------------------------------------------------------------


def full_disks(soak: Soak, rounds: int) -> dict[str, Any]:
    """Let each call that writes a file fail in turn for want of room, or some of them."""

    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_at(point: int) -> None:
        place, said, when = soak.place(), soak.folder / "said", f"no room at call {point}"

        def work() -> None:
            with watched(no_room, point):
                soak.command(place, says=said)

        soak.check(finish(soak.fork(work)) == ExitStatus.FAILED, f"{when}: wrong exit status")
        soak.check("No space left" in said.read_text(), f"{when}: says {said.read_text()!r}")
        soak.check_files(place, when)
        soak.check_ends_like_the_whole(place, when)

    total, chosen = draw_points(soak, rounds)
    for point in chosen:
        fail_at(point)
    return {"calls": total, "failures": len(chosen)}


# --- signals ----------------------------------------------------------------------------------------------


def signals(soak: Soak, rounds: int) -> dict[str, Any]:
    """Stop a training by Ctrl-C and SIGTERM in turn at random instants."""
    kinds = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}
    done, longest, place = dict.fromkeys(kinds, 0), 0.0, soak.place()
    while sum(done.values()) < rounds:
        kind = list(kinds)[sum(done.values()) % 2]
        status, seconds = stop_once(soak, place, kind)
        if status == ExitStatus.DONE:
            soak.check_ends_like_the_whole(place, "in the end")
            place = soak.place()
            continue
        done[kind] += 1
        longest = max(longest, seconds)
        soak.check(status == kinds[kind], f"{kind.name} left with {status}")
        soak.check_files(place, kind.name)
    soak.check_ends_like_the_whole(place, "in the end")
    soak.check(longest <= 2, f"it took {longest:.1f} s to leave")
    return {**{kind.name: count for kind, count in done.items()}, "longest_seconds": round(longest, 3)}


def stop_once(soak: Soak, place: Path, kind: signal.Signals) -> tuple[int, float]:
    """Send a signal to a training once it heeds them; return its exit status and how long it took to leave."""
    ready, begun = os.pipe()
    set_handler = signal.signal

    def tell(*arguments: Any) -> Any:
        before = set_handler(*arguments)
        os.write(begun, b".")
        return before

    def work() -> None:
        set_handler(signal.SIGINT, signal.default_int_handler)
        signal.signal = tell  # type: ignore[assignment]
        soak.command(place)

    child = soak.fork(work)
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(soak.draw.uniform(0.01, soak.seconds))
    os.kill(child, kind)
    started = time.perf_counter()
    status = finish(child)
    return 128 - status if status < 0 else status, time.perf_counter() - started  # as a shell tells one killed by it


# --- races ------------------------------------------------------------------------------------------------


def races(soak: Soak, rounds: int) -> dict[str, Any]:
    """Begin the same run with eight processes at once: one trains, seven are refused."""

    def race() -> None:
        place = soak.place()
        ends = sorted(finish(child) for child in [soak.fork(lambda: soak.command(place)) for _ in range(8)])
        soak.check(ends == [ExitStatus.DONE] + 7 * [ExitStatus.USAGE], f"a race ended with {ends}")
        soak.check(fingerprint(place) == soak.whole, "the winner of a race differs")

    for _ in range(rounds):
        race()
    return {"rounds": rounds}


# --- many paths -------------------------------------------------------------------------------------------


def paths(soak: Soak, rounds: int) -> dict[str, Any]:
    """Label so many paths from standard input, one in a hundred of which is no image, in constant memory."""
    photos = soak.folder / "photos"
    photos.mkdir()
    for number, image in enumerate(draw_quadrants(100, seed=3)[0]):
        Image.fromarray(image).save(photos / f"{number:02}.png")
    (photos / "57.png").write_bytes(b"no image")
    names = [str(photos / f"{number:02}.png") for number in range(100)]
    words = ["predict", str(soak.folder / "whole"), "-", "--format", "jsonl", "--device", "cpu", "--quiet"]
    (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()

    def work() -> None:
        for descriptor, number in ((theirs_in, 0), (theirs_out, 1), (os.open(os.devnull, os.O_WRONLY), 2)):
            os.dup2(descriptor, number)
        os.closerange(3, 100)
        sys.exit(run(words))

    def feed() -> None:
        with open(ours_in, "w") as lines:
            lines.writelines(f"{names[number % 100]}\n" for number in range(rounds))

    child = soak.fork(work)
    os.close(theirs_in)
    os.close(theirs_out)
    feeder = threading.Thread(target=feed)
    feeder.start()
    first: dict[str, Any] = {}
    memory: list[int] = []
    with open(ours_out) as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            soak.check(record["input"] == names[number % 100], f"record {number} is of {record['input']}")
            soak.check(record == first.setdefault(record["input"], record), f"record {number} differs from the first")
            if number % max(rounds // 10, 1) == 0:
                memory.append(resident_bytes(child))
    feeder.join()
    soak.check(finish(child) == ExitStatus.DATA, "wrong exit status")
    soak.check(number + 1 == rounds, f"{number + 1} records for {rounds} paths")
    soak.check([name for name, record in first.items() if record.get("error")] == [names[57]], "wrong ones are refused")
    soak.check(memory[-1] - memory[1] < 50 << 20, f"memory grew from {memory[1]} to {memory[-1]} bytes")
    return {"paths": rounds, "resident_bytes": memory}


def resident_bytes(child: int) -> int:
    """Return how much memory a process holds."""
    pages = Path(f"/proc/{child}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


TRIALS: dict[str, Callable[[Soak, int], dict[str, Any]]] = {
    "kills": kills,
    "side-by-side": run_in_processes,
    "points": points,
    "full-disks": full_disks,
    "signals": signals,
    "races": races,
    "paths": paths,
}


def main() -> None:
    """Run a trial, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=[*TRIALS, "all"])
    parser.add_argument("rounds", type=int, nargs="?", help="by default as many as make soak does")
    arguments = parser.parse_args()
    failed = False
    for trial in TRIALS if arguments.trial == "all" else [arguments.trial]:
        rounds = arguments.rounds or LONG[trial]
        with tempfile.TemporaryDirectory(prefix="fmcli-soak-") as folder:
            soak = Soak(Path(folder))
            result = TRIALS[trial](soak, rounds)
        print(json.dumps({"trial": trial, **result, "problems": soak.problems[:20]}), flush=True)
        failed |= bool(soak.problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()
