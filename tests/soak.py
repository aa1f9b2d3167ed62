"""Long trials of a training run: it is killed, stopped and started twice, and the disk fills up. No file may be lost.

One more trial builds all networks of torchvision.

    python -m tests.soak kills 200
    python -m tests.soak all            # the number of rounds in LONG; takes hours

Prints one JSON object for each trial: its number of rounds, and its problems. All processes are forked from this one,
which has loaded the libraries and computes nothing, so that a round needs no start-up time. `test_soak.py` runs short
forms.
"""

import argparse
import errno
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import fmcli.networks.cpu.loading
import fmcli.training.executors.processes
import fmcli.training.saving
from fmcli.checkpoints.history import HISTORY_FILE, read_history
from fmcli.checkpoints.tensors import load_tensors
from fmcli.cli import run
from fmcli.ensemble.predictions import load_predictions
from fmcli.errors import ExitStatus, FmcliError, RecipeError
from fmcli.networks.bf16 import Bf16Twin
from fmcli.networks.build import build_model
from fmcli.networks.dropout import set_dropout_generator
from fmcli.networks.inference import InferenceNetwork
from fmcli.networks.tracing import trace_network
from fmcli.recipe import Recipe, load_recipe
from fmcli.recipe.families.torchvision import TorchvisionSpec
from fmcli.recipe.tracing import LayerTrace, count_parameters
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
    "backbones": 1000,  # all
}
MAX_BACKBONE_PARAMETERS = 160_000_000  # larger networks need too much memory
MAX_FOLDING_ERROR = 1e-4
MAX_STOP_CPU_S = 2.0  # CPU time from a signal to the exit
WRITES = ((secrets, "token_hex"), (os, "fsync"), (os, "replace"))  # the calls of `write_atomic`
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
RACING = """
[[members]]
name = "m"
copies = {copies}
model.kernel_size = 3
trainer.epochs = 2
"""
STARTED_OR_EPOCH = re.compile(r"^(m-\d+(?::| \d/\d:))", re.MULTILINE)  # the first words of a line on standard error
Work = Callable[[], object]


class Soak:
    """A recipe with three members, the digests of its uninterrupted run, and the problems found so far.

    Args:
        folder: Folder for all runs.
        seed: Seed of the random moments.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        fmcli.training.saving.MAX_SAVING_SHARE = math.inf  # save after every epoch, on any machine
        fmcli.training.executors.processes._CONTEXT = multiprocessing.get_context("fork")
        fmcli.networks.cpu.loading._compile_kernels = lambda *_: None  # loading takes longer than training
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
        self.whole = digests(folder / "whole")

    def train(self, run_folder: Path, *, save_after: float = SAVE_INTERVAL_S, jobs: int = 1) -> None:
        """Start or resume a run."""
        train_run(self.recipe, run_folder, device=CPU, resume=True, save_after=save_after, jobs=jobs, threads=1)

    def train_by_command(
        self, run_folder: Path, stderr: Path = Path(os.devnull), file: Path | None = None, *words: str
    ) -> None:
        """Run `fmcli train`, and exit with its status. Without further words, start or resume a run quietly."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        command = ["train", "--recipe", str(file or self.file), "--output", str(run_folder), "--device", "cpu"]
        sys.exit(run([*command, *(words or ["--resume", "--quiet"])]))

    def fork(self, work: Work) -> int:
        """Work in another process and return its ID. Its exit status is 99 after an unexpected error."""
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

    def new_folder(self) -> Path:
        """Return the path of a run folder that does not exist."""
        self.count += 1
        return self.folder / f"run-{self.count}"

    def check(self, condition: bool, problem: str) -> None:
        """Record a problem unless the condition is true."""
        if not condition:
            self.problems.append(problem)

    def check_files(self, run_folder: Path, when: str) -> None:
        """Check that each file can be read."""
        for path in run_folder.rglob("[!.]*"):
            try:
                if path.name == VALIDATION_FILE:
                    load_predictions(path)
                elif path.suffix == ".safetensors":
                    load_tensors(path)
                elif path.name == HISTORY_FILE:
                    read_history(path.parent)
                elif path.suffix == ".toml":
                    load_recipe(str(path))
            except Exception as error:  # any error is a problem
                self.problems.append(f"{when}: {path} is damaged: {error}")

    def check_resumed_run(self, run_folder: Path, when: str) -> None:
        """Resume a run to its end and compare each file with the uninterrupted run."""
        self.check(finish(self.fork(lambda: self.train(run_folder))) == 0, f"{when}: cannot be resumed")
        found = digests(run_folder)
        wrong = [name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name)]
        self.check(not wrong, f"{when}: differs in {', '.join(sorted(wrong))}")


def finish(child: int) -> int:
    """Wait for a process and return its exit status; minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digests(run_folder: Path) -> dict[str, str]:
    """Return a digest of each file of a run except its lock, including hidden files. Durations are ignored."""
    found = {}
    for path in sorted(run_folder.rglob("*")):
        if path.name == HISTORY_FILE:
            epochs = [asdict(replace(epoch, seconds=0, images_per_second=0)) for epoch in read_history(path.parent)]
            found[str(path.relative_to(run_folder))] = json.dumps(epochs)
        elif path.is_file() and path.name != ".lock":
            found[str(path.relative_to(run_folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# --- kills ------------------------------------------------------------------------------------------------


def kills(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill runs at random moments. Half of them save their state after each step."""
    done, ends, run_folder = 0, 0, soak.new_folder()
    while done < rounds:
        killed = kill_once(soak, run_folder, each_step=soak.draw.random() < 0.5)
        done += killed
        soak.check_files(run_folder, f"kill {done}")
        if not killed or done == rounds:
            soak.check_resumed_run(run_folder, f"after kill {done}")
            ends, run_folder = ends + 1, soak.new_folder()
    return {"kills": done, "runs": ends}


def kill_once(soak: Soak, run_folder: Path, *, each_step: bool) -> bool:
    """Start or resume a run and kill it; return False if it finished before."""

    def work() -> None:
        soak.train(run_folder, save_after=0.0 if each_step else SAVE_INTERVAL_S)

    child = soak.fork(work)
    time.sleep(soak.draw.uniform(0, soak.seconds))
    os.kill(child, signal.SIGKILL)
    status = finish(child)
    soak.check(status in (0, -signal.SIGKILL), f"a killed run exited with {status}")
    return status == -signal.SIGKILL


def kill_parallel_members(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill runs with two parallel members at random moments: alternately the parent and the process of a member."""
    run_folder, ends, killed = soak.new_folder(), 0, {"parents": 0, "members": 0}
    while sum(killed.values()) < rounds:
        child = soak.fork(lambda run_folder=run_folder: soak.train(run_folder, save_after=0.0, jobs=2))
        whom = "parents" if killed["parents"] <= killed["members"] else "members"
        members: list[int] = []
        until = time.perf_counter() + soak.draw.uniform(0, 2 * soak.seconds)
        while not members or time.perf_counter() < until:  # their processes take a while to start
            members = member_processes(child)
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            time.sleep(0.02)
        else:
            os.kill(child if whom == "parents" else soak.draw.choice(members), signal.SIGKILL)
            status = finish(child)
            if status != ExitStatus.DONE:  # otherwise, the run finished just before the signal
                soak.check(
                    status == (-signal.SIGKILL if whom == "parents" else ExitStatus.FAILED),
                    f"killed {whom}: exited with {status}",
                )
                killed[whom] += 1
                while any(map(is_running, members)):  # a member exits when its parent was killed
                    time.sleep(0.02)
                soak.check_files(run_folder, f"killed {whom}")
                continue
        soak.check_resumed_run(run_folder, "at the end")
        ends, run_folder = ends + 1, soak.new_folder()
    soak.check_resumed_run(run_folder, "at the end")
    return {**killed, "runs": ends + 1}


def member_processes(parent: int) -> list[int]:
    """Return the processes in which members train, without the process that tracks shared resources."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(one) for one in found if b"resource_tracker" not in Path(f"/proc/{one}/cmdline").read_bytes()]


def process_stat(process: int) -> list[str]:
    """Return the fields of `/proc/…/stat` from the third one on."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def is_running(process: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return process_stat(process)[0] != "Z"
    except OSError:
        return False


@contextmanager
def watched_writes(act: Work, at: int, *, after: bool = False) -> Iterator[Callable[[], int]]:
    """Act before or after the n-th call that writes a file. Yields a function that returns the number of calls."""
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

    before = [(module, name, getattr(module, name)) for module, name in WRITES]
    for module, name, function in before:
        setattr(module, name, watch(function))
    try:
        yield lambda: calls
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def draw_writes(soak: Soak, rounds: int) -> tuple[int, list[int]]:
    """Return how many calls of an uninterrupted run write files, and the indices of at most `rounds` of them."""
    answer, run_folder = soak.folder / "calls", soak.new_folder()

    def work() -> None:
        with watched_writes(lambda: None, 0) as calls:
            soak.train(run_folder)
        answer.write_text(str(calls()))

    assert finish(soak.fork(work)) == 0
    total = int(answer.read_text())
    return total, sorted(soak.draw.sample(range(1, total + 1), min(rounds, total)))


def kill_at_writes(soak: Soak, rounds: int) -> dict[str, Any]:
    """Kill runs before and after calls that write a file."""

    def kill_at(index: int, *, after: bool) -> None:
        run_folder, when = soak.new_folder(), f"{'after' if after else 'before'} call {index}"

        def work() -> None:
            with watched_writes(lambda: os.kill(os.getpid(), signal.SIGKILL), index, after=after):
                soak.train(run_folder)

        soak.check(finish(soak.fork(work)) == -signal.SIGKILL, f"{when}: not reached")
        soak.check_files(run_folder, when)
        soak.check_resumed_run(run_folder, when)

    total, chosen = draw_writes(soak, rounds)
    for index in chosen:
        kill_at(index, after=False)
        kill_at(index, after=True)
    return {"calls": total, "kills": 2 * len(chosen)}


# --- full disks -------------------------------------------------------------------------------------------


def full_disks(soak: Soak, rounds: int) -> dict[str, Any]:
    """Let calls that write a file fail because the disk is full."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_at(index: int) -> None:
        run_folder, stderr, when = soak.new_folder(), soak.folder / "stderr", f"full disk at call {index}"

        def work() -> None:
            with watched_writes(fail, index):
                soak.train_by_command(run_folder, stderr)

        soak.check(finish(soak.fork(work)) == ExitStatus.FAILED, f"{when}: wrong exit status")
        soak.check("No space left" in stderr.read_text(), f"{when}: printed {stderr.read_text()!r}")
        soak.check_files(run_folder, when)
        soak.check_resumed_run(run_folder, when)

    total, chosen = draw_writes(soak, rounds)
    for index in chosen:
        fail_at(index)
    return {"calls": total, "failures": len(chosen)}


# --- signals ----------------------------------------------------------------------------------------------


def signals(soak: Soak, rounds: int) -> dict[str, Any]:
    """Stop runs at random moments, alternately by Ctrl-C and SIGTERM."""
    kinds = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}
    done, longest, run_folder = dict.fromkeys(kinds, 0), 0.0, soak.new_folder()
    while sum(done.values()) < rounds:
        kind = list(kinds)[sum(done.values()) % 2]
        status, seconds = stop_once(soak, run_folder, kind)
        if status == ExitStatus.DONE:
            soak.check_resumed_run(run_folder, "at the end")
            run_folder = soak.new_folder()
            continue
        done[kind] += 1
        longest = max(longest, seconds)
        soak.check(status == kinds[kind], f"{kind.name}: exited with {status}")
        soak.check_files(run_folder, kind.name)
    soak.check_resumed_run(run_folder, "at the end")
    soak.check(longest <= MAX_STOP_CPU_S, f"needed {longest:.1f} s of CPU time to stop")
    return {**{kind.name: count for kind, count in done.items()}, "longest_seconds": round(longest, 3)}


def stop_once(soak: Soak, run_folder: Path, kind: signal.Signals) -> tuple[int, float]:
    """Send a signal to a run after it has installed its handlers; return its exit status and the CPU time to stop."""
    ready, write_end = os.pipe()
    set_handler = signal.signal

    def set_and_report(*arguments: Any) -> Any:
        before = set_handler(*arguments)
        os.write(write_end, b".")
        return before

    def work() -> None:
        set_handler(signal.SIGINT, signal.default_int_handler)
        signal.signal = set_and_report  # type: ignore[assignment]
        soak.train_by_command(run_folder)

    child = soak.fork(work)
    os.close(write_end)
    os.read(ready, 1)
    os.close(ready)
    time.sleep(soak.draw.uniform(0.01, soak.seconds))
    before = cpu_seconds(child)
    os.kill(child, kind)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    seconds = cpu_seconds(child) - before
    status = finish(child)
    return 128 - status if status < 0 else status, seconds  # a shell also adds 128 to the number of a signal


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has used."""
    user, system = process_stat(process)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# --- races ------------------------------------------------------------------------------------------------


def races(soak: Soak, rounds: int, *, n_processes: int = 8, n_members: int = 8) -> dict[str, Any]:
    """Start the same run in several processes at the same moment: together they train each member exactly once.

    A process that starts after all members are trained is refused, because the folder already contains a run.
    """
    file = soak.folder / "race.toml"
    file.write_text(soak.file.read_text().split("\n[[members]]")[0] + RACING.format(copies=n_members))
    recipe = load_recipe(str(file))
    names = [member.name for member in recipe.members]
    assert finish(soak.fork(lambda: train_run(recipe, soak.folder / "alone", device=CPU, threads=1))) == 0
    alone = digests(soak.folder / "alone")
    once = Counter(f"{name}:" for name in names)
    once.update(f"{name} {epoch}/2:" for name in names for epoch in (1, 2))
    trained_by, late = Counter[int](), 0
    for number in range(rounds):
        run_folder, when = soak.new_folder(), f"race {number}"
        logs = [soak.folder / f"race-{number}-{process}" for process in range(n_processes)]
        ends = race(soak, file, run_folder, logs)
        texts = [log.read_text() for log in logs]
        refused = [text for end, text in zip(ends, texts, strict=True) if end == ExitStatus.USAGE]
        soak.check(all("already contains a run" in text for text in refused), f"{when}: printed {refused}")
        soak.check(set(ends) <= {ExitStatus.DONE, ExitStatus.USAGE}, f"{when}: exited with {ends}: {texts}")
        started = Counter(line for text in texts for line in STARTED_OR_EPOCH.findall(text))
        soak.check(started == once, f"{when}: members were trained {started - once} too often, {once - started} never")
        soak.check(digests(run_folder) == alone, f"{when}: the files differ")
        trained_by[sum("parameters" in text for text in texts)] += 1
        late += len(refused)
    return {"rounds": rounds, "late": late, "rounds_by_training_processes": dict(sorted(trained_by.items()))}


def race(soak: Soak, recipe_file: Path, run_folder: Path, logs: Sequence[Path]) -> list[int]:
    """Start a process for each log file at the same moment, and return their exit statuses."""
    ready, start = os.pipe()

    def work(log: Path) -> None:
        os.close(start)
        os.read(ready, 1)  # returns when the parent closes its end
        soak.train_by_command(run_folder, log, recipe_file, "--jobs", "1", "--threads", "1")

    children = [soak.fork(partial(work, log)) for log in logs]
    os.close(ready)
    os.close(start)
    return [finish(child) for child in children]


# --- many paths -------------------------------------------------------------------------------------------


def paths(soak: Soak, rounds: int) -> dict[str, Any]:
    """Label images whose paths come from standard input, in constant memory. One in a hundred is not an image."""
    photos = soak.folder / "photos"
    photos.mkdir()
    for number, image in enumerate(draw_quadrants(100, seed=3)[0]):
        Image.fromarray(image).save(photos / f"{number:02}.png")
    (photos / "57.png").write_bytes(b"not an image")
    names = [str(photos / f"{number:02}.png") for number in range(100)]
    words = ["predict", str(soak.folder / "whole"), "-", "--format", "jsonl", "--device", "cpu", "--quiet"]
    (child_in, our_end), (results, child_out) = os.pipe(), os.pipe()

    def work() -> None:
        for descriptor, number in ((child_in, 0), (child_out, 1), (os.open(os.devnull, os.O_WRONLY), 2)):
            os.dup2(descriptor, number)
        os.closerange(3, 100)
        sys.stdin = os.fdopen(0)  # `multiprocessing` replaces it
        sys.exit(run(words))

    def feed() -> None:
        with open(our_end, "w") as lines:
            lines.writelines(f"{names[number % 100]}\n" for number in range(rounds))

    child = soak.fork(work)
    os.close(child_in)
    os.close(child_out)
    feeder = threading.Thread(target=feed)
    feeder.start()
    first: dict[str, Any] = {}
    memory: list[int] = []
    with open(results) as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            soak.check(record["input"] == names[number % 100], f"record {number} is of {record['input']}")
            soak.check(record == first.setdefault(record["input"], record), f"record {number} differs from the first")
            if number % max(rounds // 10, 1) == 0:
                memory.append(resident_bytes(child))
    feeder.join()
    soak.check(finish(child) == ExitStatus.DATA, "wrong exit status")
    soak.check(number + 1 == rounds, f"{number + 1} records for {rounds} paths")
    refused = [name for name, record in first.items() if record.get("error")]
    soak.check(refused == [names[57]], f"refused {refused}")
    soak.check(memory[-1] - memory[1] < 50 << 20, f"memory grew from {memory[1]} to {memory[-1]} bytes")
    return {"paths": rounds, "resident_bytes": memory}


def resident_bytes(child: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{child}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


# --- networks of torchvision ------------------------------------------------------------------------------


def backbones(soak: Soak, rounds: int) -> dict[str, Any]:
    """Build each network of torchvision for small grey images, take a step in bfloat16, and fold it."""
    import torchvision  # loads PyTorch's compiler, which must not be loaded in the processes of other trials

    refused, skipped = {}, []
    names = torchvision.models.list_models(module=torchvision.models)[:rounds]
    for name in names:
        try:
            traces = trace_network(TorchvisionSpec(name=name), (1, 28, 28), 10)
        except RecipeError as error:
            refused[name] = error.problems[0]
            continue
        if count_parameters(traces) > MAX_BACKBONE_PARAMETERS:
            skipped.append(name)
        else:
            check_backbone(soak, name, traces)
    return {"networks": len(names), "refused": refused, "too_large": skipped}


def check_backbone(soak: Soak, name: str, traces: Sequence[LayerTrace]) -> None:
    """Check initial weights, gradients, random numbers and folding of a network."""
    model, twice = (build_model(traces, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    differs = [key for key, tensor in model.state_dict().items() if not tensor.equal(twice.state_dict()[key])]
    soak.check(not differs, f"{name}: different initial weights {differs[:3]}")
    set_dropout_generator(model, torch.Generator().manual_seed(0))
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images, before = images.contiguous(memory_format=torch.channels_last), torch.get_rng_state()
    twin = Bf16Twin(model.train())
    twin(images).float().logsumexp(dim=1).sum().backward()
    twin.collect_gradients()
    soak.check(torch.get_rng_state().equal(before), f"{name}: draws global random numbers")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gradient = module.weight.grad
            in_bf16 = gradient is not None and gradient.equal(gradient.bfloat16().float())
            soak.check(in_bf16, f"{name}: a kernel {tuple(module.weight.shape)} has no gradient in bfloat16")
    with torch.inference_mode():
        expected = model.eval()(images)
        difference = (InferenceNetwork(model)(images) - expected).abs().max()
        error = float(difference / expected.abs().max().clamp(min=1e-9))  # the last layer of ViT starts at zero
    soak.check(error < MAX_FOLDING_ERROR, f"{name}: folded logits differ by {error:.1e} of the largest")


TRIALS: dict[str, Callable[[Soak, int], dict[str, Any]]] = {
    "kills": kills,
    "side-by-side": kill_parallel_members,
    "points": kill_at_writes,
    "full-disks": full_disks,
    "signals": signals,
    "races": races,
    "paths": paths,
    "backbones": backbones,
}


def print_result(trial: str, rounds: int) -> bool:
    """Run a trial in a temporary folder, print its result, and return whether it has problems."""
    with tempfile.TemporaryDirectory(prefix="fmcli-soak-") as folder:
        soak = Soak(Path(folder))
        result = TRIALS[trial](soak, rounds)
    print(json.dumps({"trial": trial, **result, "problems": soak.problems[:20]}), flush=True)
    return bool(soak.problems)


def main() -> None:
    """Run a trial, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=[*TRIALS, "all"])
    parser.add_argument("rounds", type=int, nargs="?", help="number of rounds; by default the number in `make soak`")
    arguments = parser.parse_args()
    trials = TRIALS if arguments.trial == "all" else [arguments.trial]
    problems = [print_result(trial, arguments.rounds or LONG[trial]) for trial in trials]
    sys.exit(any(problems))


if __name__ == "__main__":
    main()
