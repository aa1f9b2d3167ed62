import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from optuna.storages.journal import JournalFileBackend

from fmcli.checkpoints.checkpoint import versions
from fmcli.cli import run
from fmcli.errors import ExitStatus, FmcliError, RecipeError, RunInUseError, UsageError
from fmcli.events import EpochFinished, MemberFinished, TrialFinished, TrialStarted
from fmcli.experiments.results import SearchResult, TrialResult
from fmcli.experiments.search import JOURNAL, open_search, read_search, run_search, write_winner
from fmcli.recipe import load_recipe, read_recipe, resolve_recipe, value_at
from fmcli.recipe.overrides import set_values
from fmcli.report.plots.search import search_figure
from fmcli.report.search import search_document
from fmcli.storage.locks import try_lock
from fmcli.training import STATE_FILE
from tests.helpers import StopAt, draw_quadrants, write_idx_folder
from tests.processes import start_fmcli

CPU = torch.device("cpu")
TINY_SEARCH = """\
# A search in seconds.
[data]
source = "idx:{folder}"
validation = {{ first = 80 }}

[model]
family = "sequential"
layers = [
  {{ type = "conv", filters = 2, kernel_size = 3, activation = "relu" }},
  {{ type = "flatten" }},
  {{ type = "dense", units = 4 }},
]

[trainer]
epochs = 4
batch_size = 32
precision = "fp32"
patience = 2
keep = "retrained"

[search]
trials = 4
trainings = 2
epochs = 2

[search.space]
"model.layers[0].filters" = {{ choice = [1, 2, 4] }}
"model.layers[0].activation" = {{ choice = ["relu", "sigmoid"] }}
"optimizer.lr" = {{ low = 1e-4, high = 1e-1, log = true }}
"trainer.batch_size" = {{ low = 16, high = 64, step = 16 }}
"""


@pytest.fixture
def recipe_file(drawn_images, tmp_path):
    path = tmp_path / "boxes.toml"
    path.write_text(TINY_SEARCH.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture
def change(recipe_file):
    """Return a function that replaces text in the recipe file and returns the path of the file as a string."""

    def do(old: str, new: str) -> str:
        text = recipe_file.read_text("utf-8")
        assert old in text
        recipe_file.write_text(text.replace(old, new), "utf-8")
        return str(recipe_file)

    return do


def search_in(recipe_file, folder, **options) -> SearchResult:
    return run_search(open_search(str(recipe_file), folder), device=CPU, **options)


@pytest.fixture(scope="module")
def finished(drawn_images, tmp_path_factory):
    """A finished search of `recipe_file`. Tests must not write to it."""
    path = tmp_path_factory.mktemp("recipe") / "boxes.toml"
    path.write_text(TINY_SEARCH.format(folder=drawn_images), "utf-8")
    return search_in(path, tmp_path_factory.mktemp("search") / "s")


@pytest.fixture
def searched(finished, tmp_path):
    """A finished search of `recipe_file` in the folder `s`. Tests may write to it."""
    shutil.copytree(finished.folder, tmp_path / "s")
    return read_search(tmp_path / "s")


# --- searching --------------------------------------------------------------------------------------------


def test_trials_draw_from_the_space_and_are_scored_on_validation_images(finished):
    assert [trial.number for trial in finished.trials] == [0, 1, 2, 3]
    assert finished.count("complete") == 4
    for trial in finished.trials:
        assert trial.values["model.layers[0].filters"] in (1, 2, 4)
        assert trial.values["model.layers[0].activation"] in ("relu", "sigmoid")
        assert 1e-4 <= trial.values["optimizer.lr"] <= 1e-1
        assert trial.values["trainer.batch_size"] in (16, 32, 48, 64)
        assert 0 <= trial.score <= 1
    assert len({trial.values["optimizer.lr"] for trial in finished.trials}) == 4
    assert finished.untuned == {
        "model.layers[0].filters": 2,
        "model.layers[0].activation": "relu",
        "optimizer.lr": 1e-3,
        "trainer.batch_size": 32,
    }
    assert sum(finished.importance.values()) == pytest.approx(1)


def test_a_trial_is_the_mean_of_its_trainings_best_epochs(searched, tmp_path):
    for trial in searched.trials:
        best = []
        for training in (0, 1):
            folder = tmp_path / "s" / f"trial-{trial.number:04d}" / f"training-{training}"
            [member] = load_recipe(str(folder / "recipe.toml")).members
            assert (member.trainer.seed, member.trainer.epochs, member.trainer.keep) == (training, 2, "best")
            assert member.trainer.patience is None
            assert member.optimizer.lr == trial.values["optimizer.lr"]
            lines = (folder / "m1" / "history.jsonl").read_text().splitlines()
            assert len(lines) == 2
            best.append(max(json.loads(line)["validation_accuracy"] for line in lines))
        assert trial.score == pytest.approx(sum(best) / 2, abs=1e-9)


@pytest.mark.parametrize(
    ("trainer", "kept"), [('keep = "retrained"\n', "best"), ('keep = "snapshots"\n', "best"), ("swa = 0.5\n", "last")]
)
def test_a_trial_keeps_its_best_epoch_or_the_average(change, tmp_path, trainer, kept):
    change('patience = 2\nkeep = "retrained"\n', trainer)
    search_in(change("[trainer]", '[schedule]\nname = "cyclic"\ncycles = 2\n\n[trainer]'), tmp_path / "s")
    for folder in (tmp_path / "s").glob("trial-*/training-*"):
        [member] = load_recipe(str(folder / "recipe.toml")).members
        assert member.trainer.keep == kept
        assert list(folder.glob("m1/snapshot-*")) == []


def test_cycles_that_do_not_divide_the_epochs_of_a_trial_are_refused(change):
    change('patience = 2\nkeep = "retrained"\n', "")
    change("[trainer]", '[schedule]\nname = "cyclic"\ncycles = 2\n\n[trainer]')
    path = change(
        '"trainer.batch_size" = { low = 16, high = 64, step = 16 }', '"schedule.cycles" = { choice = [2, 4] }'
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    problem = "search.epochs: got 2; expected a multiple of schedule.cycles = 4"
    assert list(caught.value.problems) == [f'search.space."schedule.cycles": with 4, {problem}']


def test_all_copies_of_a_member_get_the_same_values(change, tmp_path):
    change("[search]\n", '[[members]]\nname = "a"\ncopies = 2\n\n[search]\n')
    path = change('"optimizer.lr"', '"members.a.optimizer.lr"')
    result = search_in(change("trainings = 2", "trainings = 1"), tmp_path / "s")
    assert result.untuned["members.a.optimizer.lr"] == 1e-3
    for trial in result.trials:
        recipe = load_recipe(str(tmp_path / "s" / f"trial-{trial.number:04d}" / "training-0" / "recipe.toml"))
        assert [member.name for member in recipe.members] == ["a-1", "a-2"]
        assert {member.optimizer.lr for member in recipe.members} == {trial.values["members.a.optimizer.lr"]}
    assert open_search(path, tmp_path / "s").recipe.members[1].name == "a-2"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_same_seed_same_search(change, tmp_path, sampler):
    path = change("trials = 4", f'trials = 3\nsampler = "{sampler}"')
    first, second = (search_in(path, tmp_path / name) for name in "ab")
    assert first.trials == second.trials
    other = search_in(change("trainings = 2", "trainings = 2\nseed = 7"), tmp_path / "c")
    assert other.trials != first.trials


@pytest.mark.parametrize(("kind", "count"), [(EpochFinished, 3), (MemberFinished, 3), (TrialFinished, 2)])
def test_an_interrupted_search_resumes_with_the_same_results(finished, recipe_file, tmp_path, kind, count):
    with pytest.raises(KeyboardInterrupt):
        search_in(recipe_file, tmp_path / "broken", reporter=StopAt(kind, count))
    events = []
    result = search_in(recipe_file, tmp_path / "broken", resume=True, reporter=events.append)
    assert result.trials == finished.trials
    started = [event.number for event in events if isinstance(event, TrialStarted)]
    assert started == list(range(2 if kind is TrialFinished else started[0], 4))


def test_a_finished_search_can_be_extended(searched, recipe_file, tmp_path):
    more = run_search(open_search(str(recipe_file), tmp_path / "s", trials=5), device=CPU, resume=True)
    assert more.trials[:4] == searched.trials
    assert len(more.trials) == 5


def test_processes_share_a_search(finished, recipe_file, tmp_path):
    command = ["search", "--recipe", recipe_file, "--resume", "--threads", 1, "--output", tmp_path / "shared"]
    both = [start_fmcli(*command, "--device", "cpu", "--format", "json", "--quiet") for _ in range(2)]
    ends = [process.finish() for process in both]
    assert [end.status for end in ends] == [0, 0], ends
    shared = read_search(tmp_path / "shared")
    assert shared.trials == finished.trials


def test_a_trial_of_a_killed_process_is_resumed(finished, recipe_file, tmp_path):
    command = ["search", "--recipe", recipe_file, "--threads", 1, "--output", tmp_path / "killed"]
    process = start_fmcli(*command, "--device", "cpu", "--quiet")
    while not list((tmp_path / "killed").glob("trial-*/training-*/m1/state.safetensors")):
        assert process.is_alive(), process.finish()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish().status == -signal.SIGKILL
    result = search_in(recipe_file, tmp_path / "killed", resume=True)
    assert result.trials == finished.trials


def test_an_incomplete_last_line_of_the_journal_is_cut_off(searched, recipe_file, tmp_path):
    with (tmp_path / "s" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    (tmp_path / "s" / "trials.journal.lock").symlink_to("/nowhere")  # Optuna's own lock of a killed process
    more = run_search(open_search(str(recipe_file), tmp_path / "s", trials=5), device=CPU, resume=True)
    assert more.trials[:4] == searched.trials
    assert more.count("complete") == 5


def test_an_incomplete_line_of_another_process_is_cut_off(finished, recipe_file, tmp_path):
    def tear(event: object) -> None:
        if isinstance(event, TrialStarted) and event.number == 1:
            with (tmp_path / "s" / JOURNAL).open("ab") as file:
                file.write(b'{"op_code":4,"wor')

    assert search_in(recipe_file, tmp_path / "s", reporter=tear).trials == finished.trials
    assert read_search(tmp_path / "s").trials == finished.trials


def test_an_invalid_journal_line_is_an_error_while_a_search_runs(recipe_file, tmp_path):
    def damage(event: object) -> None:
        if isinstance(event, TrialStarted) and event.number == 1:
            with (tmp_path / "s" / JOURNAL).open("ab") as file:
                file.write(b'{"op_code":4,"wor\n')

    with pytest.raises(UsageError, match="is damaged"):
        search_in(recipe_file, tmp_path / "s", reporter=damage)


def test_a_damaged_journal_line_is_reported_with_its_number(searched, recipe_file, tmp_path):
    path = tmp_path / "s" / JOURNAL
    lines = path.read_text("utf-8").splitlines(keepends=True)
    index = next(index for index, line in enumerate(lines) if '"values":[' in line)
    changed = json.loads(lines[index]) | {"values": [0.999]}
    path.write_text("".join([*lines[:index], json.dumps(changed) + "\n", *lines[index + 1 :]]), "utf-8")
    for read in (lambda: search_in(recipe_file, tmp_path / "s", resume=True), lambda: read_search(tmp_path / "s")):
        with pytest.raises(UsageError, match=f"line {index + 1} of .*journal is damaged or was edited"):
            read()
    changed.pop("digest")  # as a user does after an intended edit
    path.write_text("".join([*lines[:index], json.dumps(changed) + "\n", *lines[index + 1 :]]), "utf-8")
    assert 0.999 in {trial.score for trial in read_search(tmp_path / "s").trials}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_not_accepted_as_journal(recipe_file, tmp_path):
    (tmp_path / "s").mkdir()
    os.mkfifo(tmp_path / "s" / JOURNAL)
    with pytest.raises(UsageError, match="is not a file"):
        search_in(recipe_file, tmp_path / "s", resume=True)
    with pytest.raises(UsageError, match="there is no search"):
        read_search(tmp_path / "s")


def test_a_search_does_not_resume_with_other_images(searched, recipe_file, drawn_images, tmp_path):
    write_idx_folder(tmp_path / "other", *draw_quadrants(200, seed=9))
    shutil.move(drawn_images, tmp_path / "aside")
    shutil.move(tmp_path / "other", drawn_images)
    try:
        with pytest.raises(UsageError, match=r"train images: was [0-9a-f]+, now [0-9a-f]+"):
            run_search(open_search(str(recipe_file), tmp_path / "s", trials=5), device=CPU, resume=True)
    finally:
        shutil.rmtree(drawn_images)
        shutil.move(tmp_path / "aside", drawn_images)
    assert len(read_search(tmp_path / "s").trials) == 4


def test_a_search_does_not_resume_with_another_version(searched, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("fmcli.experiments.search.versions", lambda: {"fmcli": "9.9", "torch": torch.__version__})
    with pytest.raises(UsageError, match=r"fmcli: was .*, now 9\.9"):
        search_in(recipe_file, tmp_path / "s", resume=True)


def test_a_bf16_search_on_a_cpu_does_not_resume_with_another_numba(recipe_file, tmp_path, monkeypatch):
    recipe_file.write_text(recipe_file.read_text("utf-8").replace('"fp32"', '"bf16"'), "utf-8")
    search_in(recipe_file, tmp_path / "s")
    monkeypatch.setattr("fmcli.experiments.search.versions", lambda: {**versions(), "numba": "9.9"})
    with pytest.raises(UsageError, match=r"numba: was .*, now 9\.9"):
        search_in(recipe_file, tmp_path / "s", resume=True)


def test_a_training_of_another_process_is_refused(recipe_file, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search_in(recipe_file, tmp_path / "s", reporter=StopAt(EpochFinished, 1))
    [state] = (tmp_path / "s" / "trial-0000" / "training-0").rglob(STATE_FILE)
    lock = try_lock(state.parent)
    try:
        with pytest.raises(RunInUseError):
            search_in(recipe_file, tmp_path / "s", resume=True)
    finally:
        lock.release()


@pytest.mark.parametrize("line", ["[]", "7", "null"])
def test_a_journal_line_that_is_not_a_table_is_damaged(searched, recipe_file, tmp_path, line):
    with (tmp_path / "s" / JOURNAL).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UsageError, match="is damaged or was edited"):
        search_in(recipe_file, tmp_path / "s", resume=True)


def test_a_wrong_digest_is_an_error_while_a_search_runs(recipe_file, tmp_path):
    def damage(event: object) -> None:
        if isinstance(event, TrialStarted) and event.number == 1:
            with (tmp_path / "s" / JOURNAL).open("a") as file:
                file.write('{"digest": "0"}\n')

    with pytest.raises(UsageError, match="is damaged or was edited"):
        search_in(recipe_file, tmp_path / "s", reporter=damage)


def test_a_folder_is_not_accepted_as_journal(recipe_file, tmp_path):
    (tmp_path / "s" / JOURNAL).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"trials\.journal is not a file"):
        search_in(recipe_file, tmp_path / "s", resume=True)


def test_an_impossible_network_fails_its_trial_only(change, tmp_path):
    # 12 pixels: a kernel of 8 leaves 5, which a window of 2 can pool and one of 6 cannot.
    change('{ type = "flatten" }', '{ type = "max-pool", size = 2 }, { type = "flatten" }')
    change("trials = 4\ntrainings = 2", "trials = 8\ntrainings = 1")
    space = '"model.layers[0].kernel_size" = { choice = [3, 8] }\n"model.layers[1].size" = { choice = [2, 6] }\n'
    result = search_in(change('"trainer.batch_size" =', space + '"trainer.batch_size" ='), tmp_path / "s")
    assert result.count("failed") > 0
    for trial in result.trials:
        impossible = trial.values["model.layers[0].kernel_size"] == 8 and trial.values["model.layers[1].size"] == 6
        assert trial.state == ("failed" if impossible else "complete")


def test_a_diverging_training_fails_its_trial_only(change, tmp_path):
    change("low = 1e-4, high = 1e-1, log = true", "low = 1e30, high = 1e38, log = true")
    result = search_in(change("[search]", '[optimizer]\nname = "sgd"\n\n[search]'), tmp_path / "s")
    assert result.count("failed") > 0
    assert result.count("failed") + result.count("complete") == 4
    for trial in result.trials:
        assert bool(trial.reason) == (trial.state == "failed")
        assert "the" in trial.reason or trial.state == "complete"


def test_no_winner_without_a_complete_trial(recipe_file, tmp_path):
    result = SearchResult("r", "out", 1, {}, [TrialResult(0, "failed", {}, None, "it diverged")], {})
    with pytest.raises(UsageError, match="no trial is complete"):
        write_winner(open_search(str(recipe_file), tmp_path / "s"), result, tmp_path / "best.toml")
    assert "  trial 0: it diverged" in search_document(result).sheets[0].notes


def test_a_table_and_a_value_in_it_can_both_be_searched(change, tmp_path):
    tables = '{ choice = [{ name = "sgd", lr = 0.1 }, { name = "adam", lr = 0.01 }] }'
    path = change('"optimizer.lr" =', f'"optimizer" = {tables}\n"optimizer.lr" =')
    first, second = (search_in(path, tmp_path / name) for name in "ab")
    assert first.trials == second.trials
    assert {trial.values["optimizer"]["lr"] for trial in first.trials} <= {0.1, 0.01}


def test_contradicting_values_fail_their_trial(change, tmp_path):
    layers = '{ choice = [[{ type = "flatten" }, { type = "dense", units = 4 }]] }'
    path = change('"model.layers[0].filters" =', f'"model.layers" = {layers}\n"model.layers[2].units" =')
    path = change("choice = [1, 2, 4] }", "choice = [4] }")
    result = search_in(path, tmp_path / "s")
    assert result.count("failed") == 4
    assert "no index 2" in result.trials[0].reason


def test_a_recipe_that_does_not_fit_its_data_is_refused_before_the_study_is_created(change, tmp_path):
    with pytest.raises(RecipeError, match="returns 5; expected 4, one logit per class"):
        search_in(change("units = 4", "units = 5"), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("damage", ["state", "part", "other"])
def test_a_trial_with_unusable_files_starts_again(finished, recipe_file, tmp_path, damage):
    with pytest.raises(KeyboardInterrupt):
        search_in(recipe_file, tmp_path / "s", reporter=StopAt(EpochFinished, 1))
    folder = tmp_path / "s" / "trial-0000" / "training-0"
    if damage == "state":
        (folder / "m1" / "state.safetensors").write_bytes(b"cut")
    elif damage == "part":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".recipe.toml.x.part").write_text("cut")
    else:
        (folder / "recipe.toml").write_text((folder / "recipe.toml").read_text().replace("epochs = 2", "epochs = 3"))
    result = search_in(recipe_file, tmp_path / "s", resume=True)
    assert result.trials == finished.trials


@pytest.mark.parametrize("writes", range(1, 12))
def test_a_search_killed_while_drawing_resumes_with_the_same_values(recipe_file, tmp_path, monkeypatch, writes):
    search = open_search(str(recipe_file), tmp_path / "s", trials=1)
    whole = run_search(open_search(str(recipe_file), tmp_path / "whole", trials=1), device=CPU)
    append, left = JournalFileBackend.append_logs, writes

    def append_or_die(self, logs):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        append(self, logs)

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", append_or_die)
        with suppress(KeyboardInterrupt):
            run_search(search, device=CPU)
    assert run_search(search, device=CPU, resume=True).trials == whole.trials


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_poor_trials_are_pruned(change, tmp_path, pruner):
    path = change("trials = 4\ntrainings = 2\nepochs = 2", f'trials = 12\nepochs = 6\npruner = "{pruner}"')
    result = search_in(path, tmp_path / "s")
    assert result.count("pruned") > 0
    assert result.count("pruned") + result.count("complete") == 12
    assert all(trial.score is None for trial in result.trials if trial.state == "pruned")


def test_the_best_recipe_can_be_trained(recipe_file, tmp_path):
    search = open_search(str(recipe_file), tmp_path / "s")
    result = run_search(search, device=CPU)
    write_winner(search, result, tmp_path / "best.toml")
    [best] = result.best(1)
    winner = load_recipe(str(tmp_path / "best.toml"))
    assert winner.search is None
    assert {key: value_at(winner, key) for key in best.values} == best.values
    [member] = winner.members
    assert (member.trainer.keep, member.trainer.patience, member.trainer.epochs) == ("retrained", 2, 4)
    assert f"trial {best.number}" in winner.description
    words = ["train", "--recipe", str(tmp_path / "best.toml"), "--output", str(tmp_path / "run"), "--quiet"]
    assert run(words) == ExitStatus.DONE


def test_choices_can_be_lists(drawn_images, tmp_path):
    path = tmp_path / "widths.toml"
    path.write_text(
        f"""
[data]
source = "idx:{drawn_images}"
validation = {{ first = 40 }}
[model]
family = "kernel-cnn"
form = "pooled"
kernel_size = 3
widths = [2, 4]
[trainer]
epochs = 1
precision = "fp32"
[search]
trials = 3
[search.space]
"model.widths" = {{ choice = [[2, 4], [4, 8]] }}
""",
        "utf-8",
    )
    result = search_in(path, tmp_path / "s")
    assert all(trial.values["model.widths"] in ([2, 4], [4, 8]) for trial in result.trials)


# --- refused searches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"optimizer.lr"', '"optimizer.learning_rate"', r"optimizer\.learning_rate: unknown key"),
        ('"optimizer.lr"', '"optimiser.lr"', "expected a key of model"),
        ('"optimizer.lr"', '"data.source"', "or data.normalize"),
        ("layers[0].filters", "layers[7].filters", "no index 7, because layers is a list of 3"),
        ("layers[0].filters", "layers[x].filters", "expected a list index"),
        ("layers[0].filters", "layers[0].filtres", "filtres: unknown key; did you mean 'filters'"),
        ("model.layers[0].filters", "members.k9.model.filters", "no such member"),
        ("low = 1e-4, high = 1e-1", "low = 1e-1, high = 1e-4", "low must not be above high"),
        ("low = 1e-4, high = 1e-1", "low = 0.0, high = 1e-1", "log = true needs a low above 0"),
        ("log = true", "log = true, step = 0.1", "either log or step"),
        ("low = 16, high = 64, step = 16", "low = 16, high = 64, step = 0.5", "write low = 16.0"),
        ("choice = [1, 2, 4]", "choice = []", "choice: got ()|choice: got \\[\\]"),
        ("choice = [1, 2, 4]", "choises = [1, 2, 4]", "expected one of the keys choice, low"),
        ("choice = [1, 2, 4]", "choice = [1, 0]", r"layers\[0\].filters: got 0"),
        ("trials = 4", "trials = 0", "search.trials: got 0"),
        ('"optimizer.lr"', '"trainer.keep"', "the search sets this key itself"),
        ('"trainer.batch_size"', '"trainer.epochs"', "the search sets this key itself"),
        (
            "low = 1e-4, high = 1e-1, log = true",
            "low = 1, high = 2",
            r"whole numbers would be drawn; to draw fractions, write low = 1\.0",
        ),
        (
            "high = 64, step = 16",
            "high = 65, step = 16",
            "high - low must be a multiple of step; got low = 16, high = 65",
        ),
        ("low = 16, high = 64, step = 16", "low = 0.0, high = 1e308, step = 0.05", "a number of at most"),
        ("low = 1e-4, high = 1e-1, log = true", "low = -1e308, high = 1e308", "a number of at least"),
        ("trials = 4", 'trials = 4\nsampler = "tpx"', "search.sampler: got 'tpx'"),
        (
            "[trainer]",
            '[schedule]\nname = "cyclic"\ncycles = 4\n[trainer]',
            "search.epochs: got 2; expected a multiple",
        ),
        ("validation = ", "resplit = { train = 0.5, validation = 0.0 }#", "validation images"),
    ],
)
def test_bad_searches_are_refused_before_any_training(change, tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=message):
        open_search(change(old, new), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_impossible_network_in_the_space_is_refused_before_the_search(tmp_path):
    path = tmp_path / "fashion.toml"
    text = TINY_SEARCH.format(folder="x").replace("idx:x", "fashion-mnist").replace("units = 4", "units = 10")
    path.write_text(
        text.replace('"optimizer.lr"', '"model.layers[0].kernel_size" = { choice = [3, 29] }\n"optimizer.lr"')
    )
    with pytest.raises(RecipeError, match=r"kernel_size\": with 29, .*kernel"):
        open_search(str(path), tmp_path / "s")


def test_a_recipe_without_a_search_is_refused(tiny_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"no \[search\] table"):
        open_search(str(tiny_recipe), tmp_path / "s")


def test_an_existing_search_is_not_overwritten(searched, recipe_file, tmp_path):
    with pytest.raises(UsageError, match="already has a search") as caught:
        search_in(recipe_file, tmp_path / "s")
    assert [remedy.action for remedy in caught.value.remedies] == ["resume", "output"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 32", "batch_size = 16", r"members\.m1\.trainer\.batch_size: was 32, now 16"),
        ("trainings = 2", "trainings = 1", r"search\.trainings: was 2, now 1"),
        ("choice = [1, 2, 4]", "choice = [1, 2]", r"search\.space\.model"),
    ],
)
def test_a_search_does_not_resume_with_another_recipe(change, searched, tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message):
        search_in(change(old, new), tmp_path / "s", resume=True)
    assert read_search(tmp_path / "s") == searched


def test_a_file_that_is_not_a_search_is_refused(recipe_file, tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"not a search\n\x00\n")
    with pytest.raises(UsageError, match="is damaged or was not written by fmcli"):
        search_in(recipe_file, tmp_path, resume=True)
    assert (tmp_path / JOURNAL).read_bytes() == b"not a search\n\x00\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(recipe_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FmcliError):
        search_in(recipe_file, tmp_path / "locked" / "s")


def test_a_file_where_the_folder_should_be_is_an_error(recipe_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FmcliError, match="cannot read or write"):
        search_in(recipe_file, tmp_path / "file" / "s")


def test_pruning_needs_one_member(tiny_recipe, tmp_path):
    with tiny_recipe.open("a") as file:
        file.write('[search]\npruner = "median"\n[search.space]\n"optimizer.lr" = { low = 0.1, high = 0.2 }\n')
    with pytest.raises(RecipeError, match="needs a recipe with one member"):
        open_search(str(tiny_recipe), tmp_path / "s")


def test_a_folder_without_a_search_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="there is no search"):
        read_search(tmp_path / "s")
    assert not (tmp_path / "s").exists()


# --- values of a recipe -----------------------------------------------------------------------------------


def test_values_can_be_set_in_lists_and_members(recipe_file, tiny_recipe):
    table = read_recipe(str(recipe_file)).table
    recipe = resolve_recipe(set_values(table, {"model.layers[0].filters": 7, "optimizer.lr": 0.5}), name="r")
    assert value_at(recipe, "model.layers[0].filters") == 7
    assert value_at(recipe, "optimizer.lr") == 0.5
    assert value_at(recipe, "optimizer.eps") == 1e-8
    assert value_at(recipe, "optimizer.momentum") is None
    recipe = load_recipe(str(tiny_recipe), ["members.k5.model.widths[1]=24", "data.normalize=unit"])
    assert value_at(recipe, "members.k5.model.widths[1]") == 24
    assert value_at(recipe, "model.widths[1]") == 16
    assert value_at(recipe, "data.normalize") == "unit"


def test_a_resolved_recipe_can_be_searched_with_the_same_values(recipe_file, tmp_path):
    search = open_search(str(recipe_file), tmp_path / "s")
    words = ["train", "--recipe", str(recipe_file), "--output", str(tmp_path / "run"), "--quiet"]
    assert run([*words, "--set", "trainer.epochs=1", "--set", "trainer.keep=last"]) == ExitStatus.DONE
    again = open_search(str(tmp_path / "run" / "recipe.toml"), tmp_path / "t")
    assert search.spec == again.spec
    assert again.resolve_trial({"model.layers[0].filters": 4}, 0).members[0].model.layers[0].filters == 4


# --- tables and figures ----------------------------------------------------------------------------------------


def trial(number: int, score: float | None, state="complete") -> TrialResult:
    return TrialResult(number, state, {"optimizer.lr": 0.001 * (number + 1)}, score)


def test_the_best_trials_are_shown_next_to_the_untuned_values():
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, None, "failed"), trial(3, 0.9), trial(4, None, "running")]
    result = SearchResult("r", "out", 7, {"optimizer.lr": 0.01}, trials, {"optimizer.lr": 1.0})
    assert [one.number for one in result.best(5)] == [1, 3, 0]
    main, importance = search_document(result).sheets
    assert main.rows == [
        {"Value": "optimizer.lr", ">Untuned": "0.01", ">Trial 1": "0.002", ">Trial 3": "0.004", ">Trial 0": "0.001"},
        {"Value": "Validation accuracy", ">Trial 1": "90.00", ">Trial 3": "90.00", ">Trial 0": "50.00"},
    ]
    assert main.notes == [
        "5 trials: 1 without a score, 1 still running in other processes.",
        "Not started yet: 2 of 7 trials.",
    ]
    assert importance.rows == [{"Value": "optimizer.lr", ">Importance": "100.00"}]


def test_trials_are_plotted(searched, tmp_path, capfd):
    words = ["plot", "trials", str(tmp_path / "s"), "--output", str(tmp_path / "trials.svg")]
    assert run(words) == ExitStatus.DONE
    assert capfd.readouterr().out == f"{tmp_path / 'trials.svg'}\n"
    assert (tmp_path / "trials.svg").read_bytes().startswith(b"<?xml")
    assert run(["plot", "trials", str(tmp_path), "--output", str(tmp_path / "none.png")]) == ExitStatus.USAGE
    assert "there is no search" in capfd.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_a_figure_of_trials_shows_scores_and_importance():
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, None, "failed"), trial(3, 0.8)]
    figure = search_figure(SearchResult("r", "out", 4, {"optimizer.lr": 0.01}, trials, {"optimizer.lr": 1.0}))
    scores, importance = figure.axes
    assert [list(line.get_ydata()) for line in scores.lines][1] == [0.5, 0.9, 0.8]
    assert [label.get_text() for label in importance.get_yticklabels()] == ["optimizer.lr"]
    with pytest.raises(UsageError, match="no trial is complete"):
        search_figure(SearchResult("r", "out", 4, {}, [trial(0, None, "failed")], {}))


def test_the_command(recipe_file, tmp_path, capfd):
    words = ["search", "--recipe", str(recipe_file), "--output", str(tmp_path / "s"), "--device", "cpu"]
    assert run([*words, "--trials", "2", "--write-recipe", str(tmp_path / "best.toml")]) == ExitStatus.DONE
    out, err = capfd.readouterr()
    assert "Validation accuracy" in out
    assert "trial 0" in err
    assert f"next: fmcli train --recipe {tmp_path / 'best.toml'}" in err
    assert run([*words, "--resume", "--trials", "2", "--format", "json", "--quiet"]) == ExitStatus.DONE
    shown = json.loads(capfd.readouterr().out)
    assert len(shown["trials"]) == 2
    assert shown["best"][0]["score"] >= shown["best"][1]["score"]
    assert run(words) == ExitStatus.USAGE
    shutil.rmtree(tmp_path / "s")


SIGNALLED = """
import os, signal, sys
from fmcli.cli.stop_signals import interruptible
from fmcli.errors import InterruptedRun
from fmcli.events import MemberFinished, MemberStarted, StepFinished, TrialFinished

def send(number):
    os.kill(os.getpid(), number)

def work():
    with interruptible(lambda event: print(type(event).__name__, flush=True), "--resume") as report:
        {work}

try:
    work()
except InterruptedRun as error:
    print("saved", flush=True)
    sys.exit(error.exit_status)
"""
BEGIN = "report(MemberStarted('m', 1, 2, 1, 1, 'cpu', 'fp32'))"


@pytest.mark.skipif(os.name == "nt", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("work", "out"),
    [
        ("send(NUMBER)", ""),  # no training: stop immediately
        ("exec('send(NUMBER)')", ""),  # Python itself would exit by signal here
        ("max([1, 2], key=lambda _: send(NUMBER))", ""),
        (f"{BEGIN}; send(NUMBER); report(StepFinished('m', 1)); report(1)", "MemberStarted\nsaved\n"),
        (
            f"{BEGIN}; send(NUMBER); send(NUMBER); report(StepFinished('m', 1))",
            "MemberStarted\n",
        ),  # the second signal does not wait
        # one of two members has finished; the other is within a step
        (
            f"{BEGIN}; report(StepFinished('n', 1)); report(MemberFinished('m', 'there')); send(NUMBER); "
            "report(StepFinished('n', 2))",
            "MemberStarted\nStepFinished\nMemberFinished\nsaved\n",
        ),
        (f"{BEGIN}; report(MemberFinished('m', 'there')); send(NUMBER)", "MemberStarted\nMemberFinished\n"),
        (f"{BEGIN}; report(TrialFinished(0, None)); send(NUMBER)", "MemberStarted\nTrialFinished\n"),
    ],
)
def test_a_signal_stops_a_command_at_any_point(number, work, out):
    script = SIGNALLED.format(work=work.replace("NUMBER", str(int(number))))
    done = subprocess.run([sys.executable, "-c", script, "train"], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    assert done.stdout == out
    verb = "interrupted" if number == signal.SIGINT else "terminated"
    message = f"error: {verb}\nhint:  finished work is saved; continue with: fmcli train --resume\n"
    assert done.stderr == ("" if "saved" in out else message)


@pytest.mark.skipif(os.name == "nt", reason="has no such signals")
@pytest.mark.parametrize(
    ("work", "hint"),
    [
        ("send(2)", "nothing was trained yet; run the same command again"),
        (
            f"{BEGIN}; report(TrialFinished(0, None)); send(2)",
            "finished work is saved; continue with: fmcli train --resume",
        ),
    ],
)
def test_the_hint_after_ctrl_c_depends_on_whether_anything_was_saved(work, hint):
    words = [sys.executable, "-c", SIGNALLED.format(work=work), "train", "--overwrite"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == f"error: interrupted\nhint:  {hint}\n"


def test_ctrl_c_prints_the_command_that_resumes(recipe_file, tmp_path):
    command = ["search", "--recipe", recipe_file, "--threads", 1, "--output", tmp_path / "s"]
    process = start_fmcli(*command, "--device", "cpu", "--trials", 50)
    while not list((tmp_path / "s").glob("trial-0001/training-0")):
        assert process.is_alive(), process.finish()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    ended = process.finish()
    assert ended.status == ExitStatus.INTERRUPTED
    assert ended.err.rstrip().endswith("--trials 50 --resume")
