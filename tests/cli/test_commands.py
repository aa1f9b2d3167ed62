"""Run every command in this process and check standard output, standard error and the exit status."""

import csv
import errno
import io
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import fmcli
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE, find_checkpoints
from fmcli.choices import BUILT_IN_SOURCES
from fmcli.cli import main, run, stop_signals
from fmcli.cli.app import app
from fmcli.data.idx import read_idx
from fmcli.errors import ExitStatus, FmcliError
from fmcli.recipe import load_recipe, shipped_recipes
from fmcli.report.console import Terminal, show_error
from fmcli.storage.locks import LOCK_FILE
from fmcli.training import STATE_FILE
from tests.helpers import TINY_RECIPE, Result, draw_quadrants, write_idx_folder
from tests.processes import StartedProcess, start_fmcli

CLASSES = ["top left", "top right", "bottom left", "bottom right"]
FORMATS = ["table", "json", "jsonl", "csv"]
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "albumentations", "cv2", "matplotlib", "numpy", "PIL", "pandas"}


@pytest.fixture(scope="module")
def recipe_file(drawn_images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY_RECIPE.format(folder=drawn_images), "utf-8")
    return path


@pytest.fixture(scope="module")
def trained(recipe_file, tmp_path_factory) -> tuple[Path, Result]:
    """A trained run folder and the output of `fmcli train`. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = run(["train", "--recipe", str(recipe_file), "--output", str(folder), "--verbose"])
    return folder, Result(int(status), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run_folder(trained) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def test_file(drawn_images) -> Path:
    return drawn_images / "t10k-images-idx3-ubyte"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of eight images with one bright quadrant. Each file name contains its class."""
    folder = tmp_path_factory.mktemp("photos")
    images, labels = draw_quadrants(8, seed=5)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{index} {CLASSES[label]}.png")
    return folder


NO_HISTORIES: dict[str, list[object]] = {}
# Messages that contain their hint.
ADVICE = ("did you mean", "not UTF-8 text")


def assert_error(result: Result, status: int, *messages: str) -> None:
    """Check that standard error holds one error with a hint, and that standard output is empty."""
    assert result.status == status, result.err
    assert result.out == ""
    first, *_ = result.err.splitlines()
    assert first.startswith("error: ")
    assert result.err.count("error: ") == 1
    assert result.err.count("hint: ") == 1 or any(advice in result.err for advice in ADVICE)
    assert "Traceback" not in result.err
    assert "\x1b" not in result.err
    for text in messages:
        assert text in result.err


# --- train ------------------------------------------------------------------------------------------------


def test_train_prints_an_epoch_table_and_the_next_command(trained):
    folder, result = trained
    assert result.status == ExitStatus.DONE
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines if line[:5].strip().isdigit()] == ["1", "2", "3"] * 2
    assert lines[-1] == f"Next: fmcli ensemble evaluate {folder}"
    assert "k3" in lines
    assert "k5" in lines


def test_train_prints_progress_as_plain_lines_without_a_terminal(trained):
    folder, result = trained
    lines = result.err.splitlines()
    for member in ("k3", "k5"):
        epochs = [line for line in lines if line.startswith(f"{member} ") and "images/s" in line]
        assert [line.split(":")[0] for line in epochs] == [f"{member} {epoch}/3" for epoch in (1, 2, 3)]
    assert f"wrote {folder / 'k3' / MODEL_FILE}" in lines  # --verbose
    assert "\x1b" not in result.err + result.out
    assert "\r" not in result.err + result.out


def test_default_output_folder_is_named_after_the_recipe(cli, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(
        "train", "-r", recipe_file, "--set", "trainer.epochs=1", "--seed", 3, "--member", "k5", "--format", "json"
    )
    assert result.status == 0
    assert result.json["run"] == "checkpoints/tiny"
    assert [(epoch["member"], epoch["epoch"]) for epoch in result.json["epochs"]] == [("k5", 1)]
    assert {path.name for path in (tmp_path / "checkpoints" / "tiny").iterdir()} == {RECIPE_FILE, LOCK_FILE, "k5"}
    members = load_recipe(str(tmp_path / "checkpoints" / "tiny" / RECIPE_FILE)).members
    assert [(member.trainer.epochs, member.trainer.seed) for member in members] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_train_writes_one_record_per_epoch(cli, recipe_file, tmp_path, format_):
    arguments = [
        "train",
        "-r",
        recipe_file,
        "-o",
        tmp_path / "run",
        "--set",
        "trainer.epochs=1",
        "--quiet",
        "-f",
        format_,
    ]
    result = cli(*arguments)
    records = result.records if format_ == "jsonl" else result.rows
    assert [record["member"] for record in records] == ["k3", "k5"]
    assert result.err == ""


def test_save_every_sets_the_time_between_saves(cli, recipe_file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "fmcli.training.run.train_run", lambda *_, save_after, **rest: given.append(save_after) or NO_HISTORIES
    )
    for words in ([], ["--save-every", "0.5"], ["--save-every", "0"]):
        assert cli("train", "--recipe", recipe_file, "--output", tmp_path, *words).status == ExitStatus.DONE
    assert given == [300, 30, 0]


def test_cores_are_divided_among_jobs_unless_threads_is_given(cli, recipe_file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "fmcli.training.run.train_run", lambda *_, jobs, threads, **rest: given.append((jobs, threads)) or NO_HISTORIES
    )
    for words in ([], ["--jobs", "2"], ["-j", "3", "--threads", "1"]):
        assert cli("train", "--recipe", recipe_file, "--output", tmp_path, *words).status == ExitStatus.DONE
    assert given == [(None, None), (2, None), (3, 1)]


def test_train_resumes_only_with_resume(cli, trained, recipe_file, tmp_path):
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    assert_error(cli("train", "-r", recipe_file, "-o", folder), 2, "already contains a run", "--resume")
    result = cli("train", "-r", recipe_file, "-o", folder, "--resume")
    assert result.status == 0
    assert "k3 is already trained" in result.err
    assert result.out.splitlines()[:5] == trained[1].out.splitlines()[:5]


def test_threads_option_sets_the_number_of_threads(cli, recipe_file, tmp_path):
    arguments = ["--set", "trainer.epochs=1", "--member", "k3", "--threads", 2]
    try:
        assert cli("train", "-r", recipe_file, "-o", tmp_path / "run", *arguments).status == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# --- evaluate, ensemble evaluate --------------------------------------------------------------------------


def test_evaluate_lists_every_class_by_name(cli, run_folder):
    result = cli("evaluate", run_folder / "k3")
    assert (result.status, result.err) == (0, "")
    for text in (*CLASSES, "Precision", "Recall", "F1", "Support", "macro average", "weighted average", "95 %"):
        assert text in result.out
    assert "k3 on test" in result.out
    assert "Confusion matrix" in result.out


def test_evaluate_json_is_complete(cli, run_folder):
    result = cli("evaluate", run_folder, "--split", "validation", "--format", "json")
    assert result.json["split"] == "validation"
    assert [member["name"] for member in result.json["members"]] == ["k3", "k5"]
    for member in result.json["members"]:
        assert_complete_evaluation(member, n_images=40)


def assert_complete_evaluation(member: dict, *, n_images: int, class_names: tuple[str, ...] = tuple(CLASSES)) -> None:
    matrix = np.array(member["confusion_matrix"])
    assert matrix.sum() == n_images
    assert member["accuracy"] == pytest.approx(matrix.trace() / n_images)
    low, high = member["accuracy_interval"]
    assert low <= member["accuracy"] <= high
    assert [row["class"] for row in member["classes"]] == list(class_names)
    assert [row["support"] for row in member["classes"]] == matrix.sum(axis=1).tolist()
    for row in (*member["classes"], member["macro_average"], member["weighted_average"]):
        assert all(0 <= row[score] <= 1 for score in ("precision", "recall", "f1"))
    assert member["weighted_average"]["recall"] == pytest.approx(member["accuracy"])
    assert {"loss", "brier", "ece", "most_frequent_confusions"} <= member.keys()


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("command", "names"), [("evaluate", ["k3", "k5"]), ("ensemble evaluate", ["k3", "k5", "vote"])]
)
def test_evaluation_has_one_record_per_member_and_class(cli, run_folder, command, names, format_):
    result = cli(*command.split(), run_folder, "--format", format_)
    records = result.records if format_ == "jsonl" else result.rows
    rows = [*CLASSES, "macro average", "weighted average"]
    assert [(record["member"], record["class"]) for record in records] == [
        (name, row) for name in names for row in rows
    ]
    assert all(
        set(record) == {"member", "accuracy", "class", "precision", "recall", "f1", "support"} for record in records
    )


def test_ensemble_evaluate_compares_the_vote_with_its_members(cli, run_folder):
    result = cli("ensemble", "evaluate", run_folder)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("k3 ", "k5 ", "vote "))][:3] == ["k3", "k5", "vote"]
    assert "Ties: 0." in lines
    assert all(any(line.startswith(name) for line in lines) for name in CLASSES)


def test_ensemble_evaluate_json_is_complete(cli, run_folder):
    payload = cli("ensemble", "evaluate", run_folder, "--format", "json").json
    assert (payload["split"], payload["vote"], payload["tie"]) == ("test", "majority", "probability")
    assert 0 <= payload["ties"] <= 100
    assert payload["best_member"] in {"k3", "k5"}
    assert_complete_evaluation(payload["ensemble"], n_images=100)
    for member in payload["members"]:
        assert_complete_evaluation(member, n_images=100)
    assert {"difference", "p_value"} <= payload["gain_over_best_member"].keys()


def test_ensemble_of_single_checkpoints_with_chosen_rule(cli, run_folder):
    files = [run_folder / "k5" / MODEL_FILE, run_folder / "k3"]
    result = cli("ensemble", "evaluate", *files, "--vote", "soft", "--tie", "lowest", "--format", "json")
    assert (result.json["vote"], result.json["tie"]) == ("soft", "lowest")
    assert [member["name"] for member in result.json["members"]] == ["k5", "k3"]


def test_members_with_the_same_name_get_unique_names(cli, run_folder, tmp_path):
    other = Path(shutil.copytree(run_folder, tmp_path / "other"))
    result = cli("ensemble", "evaluate", run_folder / "k3", other / "k3", "--format", "json")
    assert [member["name"] for member in result.json["members"]] == ["tiny/k3", "other/k3"]


def test_error_names_members_that_do_not_match(cli, run_folder, tmp_path):
    folder = write_idx_folder(tmp_path / "other", *draw_quadrants(60, size=8), classes=CLASSES)
    (tmp_path / "other.toml").write_text(TINY_RECIPE.format(folder=folder))
    arguments = ["--set", "trainer.epochs=1", "--member", "k3", "-q"]
    assert cli("train", "-r", tmp_path / "other.toml", "-o", tmp_path / "run", *arguments).status == 0
    result = cli("ensemble", "evaluate", run_folder, tmp_path / "run")
    assert_error(result, 4, str(tmp_path / "run" / "k3"), "(1, 8, 8)", "(1, 12, 12)")


# --- every format -----------------------------------------------------------------------------------------

RESULTS = {
    "evaluate": ["evaluate", "{run}"],
    "ensemble evaluate": ["ensemble", "evaluate", "{run}"],
    "predict": ["predict", "{run}", "{test}", "--top", "3"],
    "recipe list": ["recipe", "list"],
    "recipe keys": ["recipe", "keys"],
    "recipe show --summary": ["recipe", "show", "{recipe}", "--summary"],
    "data info": ["data", "info", "{recipe}"],
}


def arguments_of(command: str, run_folder: Path, recipe_file: Path, test_file: Path) -> list[str]:
    return [word.format(run=run_folder, recipe=recipe_file, test=test_file) for word in RESULTS[command]]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("command", RESULTS)
def test_results_are_neither_cut_nor_colored_without_a_terminal(
    cli, run_folder, recipe_file, test_file, command, format_, monkeypatch
):
    arguments = [*arguments_of(command, run_folder, recipe_file, test_file), "--format", format_]
    wide = cli(*arguments)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "5")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    narrow = cli(*arguments)
    assert wide == narrow
    assert wide.status == 0
    assert "\x1b" not in wide.out
    assert "…" not in wide.out
    assert wide.err == ""
    match format_:
        case "json":
            assert wide.json
        case "jsonl":
            assert all(isinstance(record, dict) for record in wide.records)
            assert wide.records
        case "csv":
            lengths = {len(row) for row in csv.reader(io.StringIO(wide.out))}
            assert len(lengths) == 1
        case "table":
            assert "─" in wide.out
            assert all(line == line.rstrip() for line in wide.out.splitlines() if "─" in line)


@pytest.mark.parametrize(
    ("arguments", "loud"),
    [
        (["evaluate", "{run}", "--verbose"], True),
        (["evaluate", "{run}", "--quiet"], False),
        (["ensemble", "evaluate", "{run}", "-q", "-v"], False),
        (["predict", "{run}", "{test}", "-q"], False),
        (["train", "-r", "{recipe}", "-o", "{run}", "--resume", "-q"], False),
        (["train", "-r", "{recipe}", "-o", "{run}", "--resume"], True),
    ],
)
def test_quiet_prints_nothing_on_standard_error(cli, run_folder, recipe_file, test_file, arguments, loud):
    words = [word.format(run=run_folder, recipe=recipe_file, test=test_file) for word in arguments]
    result = cli(*words)
    assert (result.status, bool(result.err)) == (0, loud)
    assert result.out


# --- recipe -----------------------------------------------------------------------------------------------


def test_recipe_list_names_every_shipped_recipe(cli):
    assert {row["name"] for row in cli("recipe", "list", "-f", "json").json["recipes"]} == set(shipped_recipes())
    assert "quick" in cli("recipe", "list").out


def test_recipe_show_prints_the_file_unchanged(cli, recipe_file):
    assert cli("recipe", "show", recipe_file).out == recipe_file.read_text()
    assert cli("recipe", "show", "quick").out == shipped_recipes()["quick"].read_text()


def test_recipe_keys_lists_a_table_and_its_subtables(cli):
    tables = {record["table"] for record in cli("recipe", "keys", "model", "--format", "json").json["keys"]}
    assert tables == {"model", "model.layers[]"}
    assert cli("recipe", "keys", "members").out == cli("recipe", "keys", "members[]").out != ""
    assert cli("recipe", "keys", "[trainer]").out == cli("recipe", "keys", "trainer").out != ""


def test_resolved_recipe_can_be_loaded_again(cli, recipe_file, tmp_path):
    result = cli("recipe", "show", recipe_file, "--resolved", "--set", "optimizer.lr=0.5")
    (tmp_path / "tiny.toml").write_text(result.out)
    assert load_recipe(str(tmp_path / "tiny.toml")) == load_recipe(str(recipe_file), ["optimizer.lr=0.5"])
    assert "label_smoothing" in result.out


def test_recipe_show_summary_counts_the_parameters(cli, recipe_file, trained):
    result = cli("recipe", "show", recipe_file, "--summary")
    assert "k3: 1,340 parameters" in result.out
    assert "k3: 1,340 parameters" in trained[1].err
    payload = cli("recipe", "show", recipe_file, "--summary", "-f", "json").json
    layers = [layer for layer in payload["layers"] if layer["member"] == "k3" and "." not in layer["layer"]]
    assert sum(layer["parameters"] for layer in layers) == payload["parameters"]["k3"] == 1340
    assert sum(layer["multiply_adds"] for layer in layers) == payload["multiply_adds"]["k3"] > 0
    assert layers[-1]["output_shape"] == [4]


def test_recipe_show_summary_indents_inner_layers(cli, recipe_file, tmp_path):
    model = {"family": "kernel-resnet", "widths": [8, 16], "stochastic_depth": 0.1}
    text = recipe_file.read_text("utf-8")
    start, end = text.index("[model]"), text.index("[optimizer]")
    recipe = tmp_path / "residual.toml"
    recipe.write_text(text[:start] + text[end:], "utf-8")
    options = [part for key, value in model.items() for part in ("--set", f"model.{key}={json.dumps(value)}")]
    table = cli("recipe", "show", recipe, "--summary", *options)
    assert all(len(line) <= 80 for line in table.out.splitlines())
    assert " 5 residual stochastic depth 0.1, relu" in table.out
    assert "    shortcut.0 conv 1×1, filters 16, no bias" in table.out
    records = cli("recipe", "show", recipe, "--summary", *options, "-f", "jsonl").records
    costs = {record["layer"]: record["parameters"] for record in records if record["member"] == "k3"}
    assert costs["5"] == sum(count for layer, count in costs.items() if layer.startswith("5."))


def test_recipe_copy_to_file_or_folder_replaces_only_with_overwrite(cli, tmp_path):
    text = shipped_recipes()["quick"].read_text()
    assert cli("recipe", "copy", "quick", tmp_path / "my.toml").out == f"{tmp_path / 'my.toml'}\n"
    assert (tmp_path / "my.toml").read_text() == text
    assert cli("recipe", "copy", "quick", tmp_path).out == f"{tmp_path / 'quick.toml'}\n"
    (tmp_path / "my.toml").write_text("mine")
    assert_error(cli("recipe", "copy", "quick", tmp_path / "my.toml"), 2, "already exists", "--overwrite")
    assert (tmp_path / "my.toml").read_text() == "mine"
    assert cli("recipe", "copy", "quick", tmp_path / "my.toml", "--overwrite").status == 0
    assert (tmp_path / "my.toml").read_text() == text


def test_recipe_validate_reports_a_valid_recipe(cli, recipe_file):
    result = cli("recipe", "validate", recipe_file)
    assert (result.status, result.out, result.err) == (0, f"{recipe_file}: valid, 2 members\n", "")


def test_recipe_validate_reports_all_problems_together(cli, recipe_file):
    overrides = ["trainer.epoch=3", "optimizer.lr=fast", "model.widths=[]", "data.source=fashion-mnst"]
    words = [word for override in overrides for word in ("--set", override)]
    result = cli("recipe", "validate", recipe_file, *words)
    assert_error(
        result, 2, "trainer.epoch:", "did you mean 'epochs'", "optimizer.lr:", "'fast'", "model.widths:", "data.source:"
    )


def test_recipe_validate_checks_the_augmentation(cli, recipe_file):
    override = "augment.albumentations=[{name='GausNoise'}]"
    assert_error(cli("recipe", "validate", recipe_file, "--set", override), 2, "did you mean 'GaussNoise'")


def test_recipe_schema_is_valid_json_schema(cli):
    schema = cli("recipe", "schema").json
    assert schema["type"] == "object"
    assert {"data", "model", "trainer", "members"} <= schema["properties"].keys()


# --- data -------------------------------------------------------------------------------------------------


def test_data_info_counts_each_class_and_split(cli, recipe_file, drawn_images):
    payload = cli("data", "info", recipe_file, "-f", "json").json
    assert payload["images"] == {"train": 200, "validation": 40, "test": 100}
    assert payload["input_shape"] == [1, 12, 12]
    assert [row["class"] for row in payload["classes"]] == CLASSES
    for split in ("train", "validation", "test"):
        assert sum(row[split] for row in payload["classes"]) == payload["images"][split]
    of_folder = cli("data", "info", f"idx:{drawn_images}", "-f", "json").json
    assert of_folder["images"] == {"train": 240, "test": 100}
    assert of_folder["digests"]["test"] == payload["digests"]["test"]


def test_data_info_writes_a_sample_grid(cli, recipe_file, tmp_path):
    result = cli("data", "info", recipe_file, "--grid", tmp_path / "grid.png")
    assert result.status == 0
    assert result.err == f"wrote {tmp_path / 'grid.png'}\n"
    with Image.open(tmp_path / "grid.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 100
        assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10


# --- predict ----------------------------------------------------------------------------------------------


def test_predict_classifies_a_folder_in_name_order(cli, run_folder, photos):
    records = cli("predict", run_folder, photos, "-f", "jsonl").records
    assert [record["input"] for record in records] == [str(path) for path in sorted(photos.iterdir())]
    assert [f"{index} {record['label']}.png" for index, record in enumerate(records)] == sorted(os.listdir(photos))
    assert all(record["votes"] in (1, 2) and 0.25 < record["probability"] <= 1 for record in records)


def test_predict_keeps_the_order_of_its_inputs(cli, run_folder, photos):
    names = [str(path) for path in sorted(photos.iterdir(), reverse=True)]
    records = cli("predict", run_folder, *names, "-f", "jsonl", "--batch-size", 3).records
    assert [record["input"] for record in records] == names


def test_predict_reads_arrays(cli, run_folder, photos, tmp_path):
    names = sorted(photos.iterdir())
    np.save(tmp_path / "photos.npy", np.stack([np.asarray(Image.open(name)) for name in names]))
    records = cli("predict", run_folder, tmp_path / "photos.npy", "-f", "jsonl").records
    of_files = cli("predict", run_folder, photos, "-f", "jsonl").records
    assert [record["index"] for record in records] == list(range(8))
    keys = ("label", "probability", "votes")
    assert [[record[key] for key in keys] for record in records] == [
        [record[key] for key in keys] for record in of_files
    ]


def standard_input(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))


@pytest.mark.parametrize(
    ("options", "end"), [(["-"], "\n"), (["-", "-0"], "\0"), (["-0"], "\0"), (["--null", "-"], "\0")]
)
@pytest.mark.parametrize("closed", [True, False])
def test_predict_reads_paths_from_standard_input(cli, run_folder, photos, monkeypatch, options, end, closed):
    names = [str(path) for path in sorted(photos.iterdir(), reverse=True)]
    standard_input(monkeypatch, (end.join(names) + end * closed).encode())
    result = cli("predict", run_folder, *options, "-f", "jsonl")
    assert [record["input"] for record in result.records] == names
    assert result.status == 0


def test_option_for_standard_input_is_refused_with_paths(cli, run_folder, photos):
    refused = cli("predict", run_folder, photos, "-0")
    assert_error(refused, ExitStatus.USAGE, "--null is only for paths on standard input")
    assert "omit --null" in refused.err


def test_nul_separated_paths_may_contain_newlines(cli, run_folder, photos, tmp_path, monkeypatch):
    odd = tmp_path / "odd\nname.png"
    shutil.copy(next(photos.iterdir()), odd)
    standard_input(monkeypatch, f"{odd}\0".encode())
    result = cli("predict", run_folder, "-", "-0", "-f", "jsonl")
    assert (result.status, [record["input"] for record in result.records]) == (0, [str(odd)])


def test_predict_without_paths_prints_no_records(cli, run_folder, monkeypatch):
    for format_, empty in (("jsonl", ""), ("csv", ""), ("json", "[]\n")):
        standard_input(monkeypatch, b"")
        result = cli("predict", run_folder, "-", "-f", format_)
        assert (result.status, result.out, result.err) == (0, empty, "")


@pytest.mark.parametrize("format_", FORMATS)
def test_unreadable_image_does_not_stop_the_rest(cli, run_folder, photos, tmp_path, format_):
    good = sorted(photos.iterdir())[:2]
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = cli("predict", run_folder, good[0], tmp_path / "bad.png", tmp_path / "none.png", good[1], "-f", format_)
    assert result.status == ExitStatus.DATA
    assert result.err.startswith("error: 2 of 4 images")
    assert "Traceback" not in result.err
    if format_ == "table":
        rows = result.out.splitlines()[2:]
        assert [("error:" in row) for row in rows] == [False, True, True, False]
        return
    records = {"json": lambda: result.json, "jsonl": lambda: result.records, "csv": lambda: result.rows}[format_]()
    assert [record["input"] for record in records] == [
        str(path) for path in (good[0], tmp_path / "bad.png", tmp_path / "none.png", good[1])
    ]
    assert [bool(record.get("error")) for record in records] == [False, True, True, False]
    assert [bool(record.get("label")) for record in records] == [True, False, False, True]
    assert "No such file" in records[2]["error"]


def test_top_lists_the_most_probable_classes(cli, run_folder, photos):
    for record in cli("predict", run_folder, photos, "--top", 3, "-f", "jsonl").records:
        assert len(record["top"]) == 3
        assert record["top"][0] == {"label": record["label"], "probability": record["probability"]}
        assert len({entry["label"] for entry in record["top"]}) == 3
    rows = cli("predict", run_folder, photos, "--top", 3, "-f", "csv").rows
    assert all({row["label"], row["label_2"], row["label_3"]} < set(CLASSES) for row in rows)
    assert cli("predict", run_folder, photos, "--top", 99, "-f", "jsonl").records[0]["top"][3:]


def test_predictions_are_equal_in_every_format(cli, run_folder, photos):
    by_format = {format_: cli("predict", run_folder, photos, "-f", format_) for format_ in FORMATS}
    records = by_format["jsonl"].records
    assert by_format["json"].json == records
    assert [(row["input"], row["label"], float(row["probability"])) for row in by_format["csv"].rows] == [
        (record["input"], record["label"], record["probability"]) for record in records
    ]
    lines = by_format["table"].out.splitlines()[2:]
    for line, record in zip(lines, records, strict=True):
        assert line.startswith(record["input"])
        assert line.split()[-2:] == [f"{record['probability']:.4f}", str(record["votes"])]


def test_predict_and_evaluate_agree_on_the_test_images(cli, run_folder, test_file, drawn_images):
    labels = read_idx(drawn_images / "t10k-labels-idx1-ubyte")[0]
    for model, command in ((run_folder, "ensemble evaluate"), (run_folder / "k3", "evaluate")):
        records = cli("predict", model, test_file, "-f", "jsonl", "--invert", "never").records
        chosen = [CLASSES.index(record["label"]) for record in records]
        matrix = np.zeros((4, 4), dtype=int)
        np.add.at(matrix, (labels, chosen), 1)
        payload = cli(*command.split(), model, "-f", "json").json
        evaluation = payload["ensemble"] if "ensemble" in payload else payload["members"][0]
        assert matrix.tolist() == evaluation["confusion_matrix"]


def test_predictions_do_not_depend_on_the_batch_size(cli, run_folder, test_file):
    answers = [
        [
            (record["label"], record["votes"])
            for record in cli("predict", run_folder, test_file, "-f", "jsonl", *size).records
        ]
        for size in ([], ["--batch-size", "1"], ["--batch-size", "33"])
    ]
    assert answers[0] == answers[1] == answers[2]


# --- bad input --------------------------------------------------------------------------------------------

BAD = {
    "recipe typo": (["train", "-r", "{recipe}", "--set", "trainer.epoch=3", "-o", "{new}"], 2, "did you mean 'epochs'"),
    "no such recipe": (["train", "-r", "quik", "-o", "{new}"], 2, "did you mean 'quick'"),
    "no recipe file": (["train", "-r", "{new}.toml"], 2, "no recipe at"),
    "recipe is an image": (["recipe", "validate", "{image}"], 2, "not UTF-8"),
    "no such member": (["train", "-r", "{recipe}", "--member", "k4", "-o", "{new}"], 2, "no member 'k4'"),
    "--set without =": (["train", "-r", "{recipe}", "--set", "trainer.epochs", "-o", "{new}"], 2, "expected key=value"),
    "folder is no run": (["train", "-r", "{recipe}", "-o", "{photos}"], 2, "is not a run"),
    "resume and overwrite": (["train", "-r", "{recipe}", "-o", "{run}", "--resume", "--overwrite"], 2, "not both"),
    "resume differently": (["train", "-r", "{recipe}", "-o", "{run}", "--resume", "--seed", "9"], 2, "was 0, now 9"),
    "nothing to label": (["predict", "{run}"], 2, "no images to classify"),
    "- and a path": (["predict", "{run}", "-", "{image}"], 2, "- cannot be combined"),
    "grid of no kind": (["data", "info", "{recipe}", "--grid", "{new}.doc"], 2, "cannot write a figure"),
    "no such table": (["recipe", "keys", "optimiser"], 2, "did you mean 'optimizer'"),
    "no such source": (["data", "info", "mnist"], 2, "no such source"),
    "no data": (["train", "-r", "{recipe}", "--set", "data.source=idx:{new}", "-o", "{new}"], 3, "is not a folder"),
    "no real data": (["data", "info", "fashion-mnist", "--data-root", "{new}"], 3, "Fashion-MNIST was not found"),
    "no data to evaluate": (["evaluate", "{orphan}"], 3, "is not a folder"),
    "no checkpoint": (["evaluate", "{new}"], 4, "does not exist"),
    "images for a run": (["evaluate", "folder:pets"], 4, "folder:pets is a source of images, not a run"),
    "no members": (["ensemble", "evaluate", "{photos}"], 4, "no trained member in"),
    "an image for a checkpoint": (["predict", "{image}", "{image}"], 4, "not a complete safetensors file"),
    "damaged checkpoint": (["evaluate", "{damaged}"], 4, "is damaged"),
    "no GPU": (["train", "-r", "{recipe}", "-o", "{new}", "--device", "cuda:99"], 5, "no device cuda:99"),
    "no GPU to evaluate": (["evaluate", "{run}", "--device", "cuda:99"], 5, "--device auto"),
    "no GPU to predict": (["predict", "{run}", "{image}", "--device", "cuda:99"], 5, "--device cpu"),
    "no such device": (["evaluate", "{run}", "--device", "cdua"], 5, "did you mean 'cuda'"),
}


@pytest.fixture(scope="module")
def paths(run_folder, recipe_file, photos, tmp_path_factory) -> dict[str, Path]:
    """Paths for invalid input: existing, missing and damaged files."""
    base = tmp_path_factory.mktemp("paths")
    damaged = Path(shutil.copy(run_folder / "k3" / MODEL_FILE, base / "damaged.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"damaged")
    gone = write_idx_folder(base / "gone", *draw_quadrants(60), classes=CLASSES)
    (base / "orphan.toml").write_text(TINY_RECIPE.format(folder=gone))
    words = [
        "train",
        "-r",
        f"{base}/orphan.toml",
        "-o",
        f"{base}/orphan",
        "--set",
        "trainer.epochs=1",
        "-q",
        "-f",
        "csv",
    ]
    with redirect_stdout(io.StringIO()):
        assert run(words) == 0
    shutil.rmtree(gone)
    return {
        "run": run_folder, "recipe": recipe_file, "photos": photos, "image": next(photos.iterdir()),
        "damaged": damaged, "orphan": base / "orphan", "new": base / "new",
    }  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_input_gives_one_line_with_a_hint(cli, paths, monkeypatch, tmp_path, case):
    monkeypatch.setattr("fmcli.data.sources.fashion_mnist.SYSTEM_FOLDER", tmp_path)
    arguments, status, message = BAD[case]
    result = cli(*(word.format(**paths) for word in arguments))
    assert_error(result, status, message)
    assert not paths["new"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recpe", "quick"], "No such option"),
        (["train"], "Missing option"),
        (["trian"], "trian"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "x", "--split", "tset"], "tset"),
        (["predict", "x", "y", "--format", "xml"], "xml"),
        (["predict", "x", "y", "--top", "0"], "--top"),
    ],
)
def test_usage_error_exits_with_2(cli, arguments, message):
    result = cli(*arguments)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


def test_wrong_choice_lists_the_choices_in_short_lines(cli):
    error = cli("plot", "foo", "x", "--output", "a.png").err
    assert "Invalid value for 'FIGURE': 'foo'\nchoose from: samples, class-counts" in error
    assert max(map(len, error.splitlines())) <= 80
    assert cli("plot", "sample", "x", "--output", "a.png").err.endswith("'sample'\ndid you mean 'samples'?\n")


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "-r", LONG],
        ["train", "-r", "{recipe}", "-o", LONG],
        ["evaluate", LONG],
        ["predict", LONG, "x.png"],
        ["predict", "{run}", LONG],
        ["data", "info", f"idx:{LONG}"],
        ["data", "info", "fashion-mnist", "--data-root", LONG],
        ["data", "info", "{recipe}", "--grid", f"{LONG}.png"],
        ["recipe", "copy", "quick", LONG],
        ["recipe", "copy", "quick", "/proc/nothing/here.toml"],
        ["train", "-r", "{recipe}", "-o", "/proc/nothing/here"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_invalid_paths_give_no_traceback(cli, run_folder, recipe_file, arguments):
    result = cli(*(word.format(run=run_folder, recipe=recipe_file) for word in arguments))
    assert result.status in (1, 2, 3, 4)
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err


def test_colons_in_a_name_are_not_replaced_by_emoji(cli):
    assert ":bug: does not exist" in cli("evaluate", ":bug:").err


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_recipe_may_start_with_a_byte_order_mark(cli, recipe_file, tmp_path, mark):
    (tmp_path / "of-windows.toml").write_text(mark + recipe_file.read_text("utf-8"), "utf-8")
    assert cli("recipe", "validate", tmp_path / "of-windows.toml").status == 0


def test_evaluate_uses_at_most_one_thread_per_core(cli, run_folder, monkeypatch):
    monkeypatch.setattr("fmcli.hardware.cpu.count_cores", lambda: 1)
    torch.set_num_threads(2)
    assert cli("evaluate", run_folder, "--format", "csv").status == 0
    assert torch.get_num_threads() == 1


def test_changed_images_are_reported(cli, tiny_recipe, tmp_path):
    folder = tmp_path / "pets"
    for number in range(20):
        for name in ("cat", "dog"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 12), number * 10 + 20 * (name == "dog")).save(folder / name / f"{number}.png")
    sets = (f"data.source=folder:{folder}", "data.validation.fraction=0.25", "trainer.epochs=1")
    words = [word for override in sets for word in ("--set", override)]
    trained = cli("train", "-r", tiny_recipe, *words, "-o", tmp_path / "run", "-q")
    assert trained.status == 0, trained.err
    (folder / "cat").rename(folder / "cats")
    refused = cli("evaluate", tmp_path / "run")
    assert refused.status == 4
    assert "missing class cat; new class cats" in refused.err


def test_control_characters_in_names_do_not_reach_the_terminal(cli, run_folder):
    name = "\x1b]0;evil\x07\x1b[31m.png"
    for result in (cli("predict", run_folder, name), cli("evaluate", name), cli("train", "-r", name)):
        assert result.status in (2, 3, 4)
        assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["cuda", "cpu"])
@pytest.mark.parametrize("command", ["evaluate", "ensemble evaluate", "predict"])
def test_out_of_memory_gives_no_traceback(cli, run_folder, test_file, monkeypatch, command, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fmcli.members.network.NetworkMember.predict_images", fail)
    arguments = [*command.split(), run_folder, *([test_file] if command == "predict" else [])]
    assert_error(cli(*arguments), ExitStatus.DEVICE, "too little memory")


@pytest.mark.parametrize("command", ["evaluate", "ensemble evaluate"])
def test_interrupted_evaluation_gives_no_traceback(cli, run_folder, monkeypatch, command):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fmcli.members.network.NetworkMember.predict_images", stop)
    result = cli(*command.split(), run_folder)
    assert (result.status, result.out) == (ExitStatus.INTERRUPTED, "")
    assert "Traceback" not in result.err


def test_bug_prints_its_traceback(cli, run_folder, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fmcli.members.network.NetworkMember.predict_images", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli("evaluate", run_folder)


def test_version(cli):
    assert cli("--version").out == f"fmcli {fmcli.__version__}\n"


# --- in a shell -------------------------------------------------------------------------------------------


@pytest.fixture
def closed_pipe(monkeypatch):
    """A function that replaces stdout or stderr with a pipe whose reading end is closed."""
    opened = []

    def close(stream: str) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        opened.append(os.fdopen(writing, "w"))
        monkeypatch.setattr(sys, stream, opened[-1])

    yield close
    for file in opened:
        with suppress(BrokenPipeError):
            file.close()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("command", RESULTS)
def test_closed_pipe_ends_every_command_quietly(
    capfd, closed_pipe, run_folder, recipe_file, test_file, command, format_
):
    closed_pipe("stdout")
    assert run([*arguments_of(command, run_folder, recipe_file, test_file), "-f", format_]) == ExitStatus.PIPE_CLOSED
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipe", "schema"], ["--version"]])
def test_closed_pipe_ends_help_quietly(capfd, closed_pipe, arguments):
    closed_pipe("stdout")
    assert run(arguments) == ExitStatus.PIPE_CLOSED
    assert capfd.readouterr().err == ""


def test_closed_standard_error_ends_training_quietly(capfd, closed_pipe, recipe_file, tmp_path):
    closed_pipe("stderr")
    assert run(["train", "-r", str(recipe_file), "-o", str(tmp_path / "run")]) == ExitStatus.PIPE_CLOSED
    assert capfd.readouterr().out == ""


FMCLI = [sys.executable, "-m", "fmcli"]


def in_a_shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run fmcli in a shell with a redirection."""
    line = f"{shlex.join([*FMCLI, *map(str, arguments)])} {redirection}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_full_disk_gives_a_one_line_error():
    done = in_a_shell(">/dev/full", "recipe", "show", "quick")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Exception" not in done.stderr


def test_paths_from_a_closed_standard_input_are_refused(cli, run_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as after `<&-`
    assert_error(cli("predict", run_folder, "-"), 2, "standard input is closed")


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("/opt/fmcli/bin/fmcli", "/opt/fmcli/bin/fmcli"),
        (".venv/bin/fmcli", ".venv/bin/fmcli"),
        ("fmcli", "fmcli"),
        ("/usr/lib/python3/fmcli/__main__.py", f"{sys.executable} -m fmcli"),
        ("/usr/bin/pytest", "fmcli"),
    ],
)
def test_resume_command_calls_fmcli_in_the_same_way(monkeypatch, program, named):
    monkeypatch.setattr(sys, "argv", [program])
    assert shlex.join(stop_signals._program()) == named
    found = "/opt/fmcli/bin/fmcli"
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert shlex.join(stop_signals._program()) == ("fmcli" if program == found else named)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize(
    ("closed", "is_full", "options"),
    [(["stderr"], False, []), ([], True, []), (["stdout"], False, []), (["stdout", "stderr"], False, ["--jobs", "2"])],
)
def test_training_continues_with_closed_or_full_streams(recipe_file, tmp_path, closed, is_full, options):
    words = ["train", "-r", str(recipe_file), "-o", str(tmp_path / "run"), *options]
    done = StartedProcess(run_with_closed_streams, closed, is_full, words).finish()
    assert done.status == 0
    assert "Traceback" not in done.err
    assert find_checkpoints(tmp_path / "run")


def run_with_closed_streams(closed: list[str], is_full: bool, words: list[str]) -> None:
    """Run fmcli as after the redirections `>&-` and `2>&-`, or `2>/dev/full`."""
    for name in closed:
        os.close(getattr(sys, name).fileno())
        setattr(sys, name, None)
    if is_full:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
    main(words)


@pytest.mark.parametrize("arguments", [["recipe", "show", "quick"], ["recipe", "list"], ["--help"], ["--version"]])
def test_closed_standard_output_gives_no_traceback(arguments):
    done = in_a_shell(">&-", *arguments)
    assert (done.returncode, done.stderr) == (0, "")


class Failing(io.StringIO):
    """A stream on which every write raises an error."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def test_notes_that_cannot_be_written_are_discarded():
    full = Failing(OSError(errno.ENOSPC, "No space left on device"))
    Terminal(err=full).note("message")
    show_error(FmcliError("wrong"), file=full)


def test_error_keeps_its_status_if_stderr_is_closed():
    process = subprocess.Popen([*FMCLI, "recipe", "show", "nosuch"], stderr=subprocess.PIPE)
    process.stderr.close()
    assert process.wait(60) == ExitStatus.USAGE


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="takes no such names")
def test_paths_need_not_be_utf8(cli, recipe_file, tmp_path):
    recipe = shutil.copy(recipe_file, tmp_path / os.fsdecode(b"tiny\xff.toml"))
    run_folder = tmp_path / os.fsdecode(b"run\xff")
    assert cli("train", "-r", recipe, "-o", run_folder).status == 0
    assert cli("ensemble", "evaluate", run_folder).status == 0
    assert cli("evaluate", run_folder / "k3", "--save-predictions", tmp_path / os.fsdecode(b"saved\xff")).status == 0
    assert cli("ensemble", "evaluate", tmp_path / os.fsdecode(b"saved\xff")).status == 0
    assert cli("ensemble", "pack", run_folder, "-o", tmp_path / os.fsdecode(b"pack\xff.safetensors")).status == 0
    refused = cli("ensemble", "fit", run_folder, "--vote", "soft", "-o", tmp_path / "ensemble.toml")
    assert_error(refused, ExitStatus.USAGE, "must be UTF-8 in an ensemble file")
    refused = cli("train", "-r", "quick", "--set", os.fsdecode(b"data.source=\xff"), "-o", tmp_path / "other")
    assert_error(refused, ExitStatus.USAGE, "is not UTF-8")


def test_closed_pipe_of_the_real_process_ends_quietly(recipe_file):
    """The reader exits early, as `| head -1` does. The interpreter must not complain at shutdown either."""
    calls = (["recipe", "show", str(recipe_file), "--resolved"], ["recipe", "list"], ["recipe", "--help"])
    with ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([*FMCLI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            for words in calls
        ]
        for process in processes:
            process.stdout.close()
        ends = [(process.stderr.read(), process.wait(30)) for process in processes]
    assert ends == [(b"", ExitStatus.PIPE_CLOSED)] * 3


def terminal_output(monkeypatch, arguments: list[str], stream: str) -> str:
    """Run fmcli with one stream on a pseudo-terminal and return its output."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, stream, file)
        run(arguments)
    content = b""
    try:
        while block := os.read(reader, 4096):
            content += block
    except OSError:  # the other end is closed
        pass
    os.close(reader)
    return content.decode()


@pytest.mark.parametrize(
    ("stream", "arguments"), [("stdout", ["recipe", "list"]), ("stderr", ["recipe", "show", "nothing"])]
)
def test_terminal_is_colored_unless_disabled(capfd, monkeypatch, stream, arguments):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in terminal_output(monkeypatch, arguments, stream)
    monkeypatch.setenv("NO_COLOR", "1")
    bare = terminal_output(monkeypatch, arguments, stream)
    assert not any(f"\x1b[{kind}{color}" in bare for kind in ("", "1;") for color in range(30, 50))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in terminal_output(monkeypatch, arguments, stream)


def test_progress_bar_is_only_drawn_on_a_terminal(capfd, monkeypatch, recipe_file, tmp_path):
    arguments = ["train", "-r", str(recipe_file), "--set", "trainer.epochs=1", "--member", "k3"]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    shown = terminal_output(monkeypatch, [*arguments, "-o", str(tmp_path / "one")], "stderr")
    assert "━" in shown
    assert "images/s" not in shown
    monkeypatch.setenv("TERM", "dumb")
    shown = terminal_output(monkeypatch, [*arguments, "-o", str(tmp_path / "two")], "stderr")
    assert "━" not in shown
    assert "images/s" in shown


def command_paths(group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = [prefix]
    for name, command in getattr(group, "commands", {}).items():
        paths += command_paths(command, (*prefix, name))
    return paths


def modules_imported(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 100
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}


def test_help_imports_no_slow_module():
    paths = command_paths(typer.main.get_command(app))
    assert len(paths) > 10
    program = f"from fmcli.cli import run\nfor path in {paths}:\n    assert run([*path, '--help']) == 0"
    assert modules_imported(program).isdisjoint(HEAVY)


def test_recipe_commands_import_no_slow_module(recipe_file):
    calls = [
        ["recipe", "validate", str(recipe_file)], ["recipe", "validate", "quick"], ["recipe", "list"],
        ["recipe", "show", "quick", "--summary"], ["recipe", "schema"],
    ]  # fmt: skip
    program = f"from fmcli.cli import run\nfor call in {calls}:\n    assert run(call) == 0, call"
    assert modules_imported(program).isdisjoint(HEAVY)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_train_and_evaluate_do_not_import_the_torch_compiler(optimizer, recipe_file, tmp_path):
    calls = [
        ["train", "-r", str(recipe_file), "--set", f"optimizer.name={optimizer}", "-o", str(tmp_path / "run")],
        ["evaluate", str(tmp_path / "run")],
    ]
    done = StartedProcess(run_without_torch_compiler, calls).finish()
    assert done.status == 0, done.err


def run_without_torch_compiler(calls: list[list[str]]) -> None:
    for call in calls:
        assert run(call) == 0, call
    loaded = [name for name in ("torch._dynamo", "sympy") if name in sys.modules]  # they cost 130 MiB and one second
    assert not loaded


ONE_MEMBER = TINY_RECIPE.split('\n[[members]]\nname = "k5"')[0]


def stop_in_third_epoch(recipe: Path, folder: Path, kind: signal.Signals) -> Result:
    """Start a training of many epochs in a new process group, as a shell does. Send a signal after the second epoch."""
    words = ["train", "-r", recipe, "-o", folder, "--threads", 1, "--set", "trainer.epochs=60"]
    process = start_fmcli(*words, new_session=True)
    while " 2/60" not in process.read_output()[1]:
        assert process.is_alive(), process.finish()
        time.sleep(0.01)
    os.killpg(process.pid, kind)
    return process.finish()


@pytest.mark.slow
def test_interrupted_training_prints_its_resume_command_and_resumes(cli, drawn_images, tmp_path):
    """Send SIGINT to the whole process group, as Ctrl-C does, and SIGTERM, as a scheduler does."""
    text = ONE_MEMBER.format(folder=drawn_images).replace("first = 40", "first = 200")
    (tmp_path / "workers.toml").write_text(text + "\n[[augment.albumentations]]\nname = 'HorizontalFlip'\n")
    folders = [tmp_path / "run one", tmp_path / "run two"]
    ends = [
        stop_in_third_epoch(tmp_path / "workers.toml", folder, kind)
        for folder, kind in zip(folders, (signal.SIGINT, signal.SIGTERM), strict=True)
    ]
    assert [end.status for end in ends] == [ExitStatus.INTERRUPTED, ExitStatus.TERMINATED]
    for folder, end, word in zip(folders, ends, ("interrupted", "terminated"), strict=True):
        assert end.out == ""
        assert "Traceback" not in end.err
        assert f"error: {word}" in end.err
        assert (folder / "k3" / STATE_FILE).is_file()
        assert not list(folder.rglob("*.part"))
    command = ends[1].err.split("continue with: ")[1].strip()
    program, *words = shlex.split(command)
    assert program == "fmcli"
    result = cli(*words)
    assert result.status == 0, result.err
    assert "resuming at epoch" in result.err
    assert (folders[1] / "k3" / MODEL_FILE).is_file()
    assert not (folders[1] / "k3" / STATE_FILE).exists()


# --- the real images --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_recipe_on_real_images(cli, fashion_mnist, tmp_path):
    """Train the shipped recipe with fewer images and narrower networks."""
    train, test = (
        tuple(read_idx(fashion_mnist / f"{name}-{kind}-ubyte.gz")[0] for kind in ("images-idx3", "labels-idx1"))
        for name in ("train", "t10k")
    )
    names = BUILT_IN_SOURCES["fashion-mnist"].class_names
    part = write_idx_folder(
        tmp_path / "part", *(array[:4000] for array in train), test=tuple(array[:1000] for array in test), classes=names
    )
    overrides = [
        f"data.source=idx:{part}", "data.validation.first=1000", "trainer.epochs=3", "trainer.batch_size=32",
        "trainer.weight_average=0.95", "model.depth=1",
        *(f"members.{name}.model.widths=[8,16,16]" for name in ("k3", "k5", "k7")),
    ]  # fmt: skip
    words = [word for override in overrides for word in ("--set", override)]
    folder = tmp_path / "quick"
    assert cli("train", "--recipe", "quick", *words, "--output", folder).status == 0
    payload = cli("ensemble", "evaluate", folder, "--format", "json").json
    assert [member["name"] for member in payload["members"]] == ["k3", "k5", "k7"]
    for evaluation in (*payload["members"], payload["ensemble"]):
        assert_complete_evaluation(evaluation, n_images=1000, class_names=names)
    assert payload["ensemble"]["accuracy"] > 0.75


# --- output for scripts -----------------------------------------------------------------------------------


def test_csv_lines_end_in_a_line_feed(cli, run_folder, test_file):
    result = cli("predict", run_folder, test_file, "--format", "csv")
    assert "\r" not in result.out


def test_json_is_valid_if_stdout_is_not_utf8(run_folder, tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(tmp_path / "é ☃.png")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as left:
        main(["predict", str(run_folder), str(tmp_path), "--format", "jsonl"])
    assert left.value.code == 0
    assert json.loads(sys.stdout.buffer.getvalue())["input"].endswith("é ☃.png")


def test_partial_run_lists_its_missing_members(cli, run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.rmtree(copy / "k5")
    result = cli("ensemble", "evaluate", copy)
    assert result.status == 0
    assert "that are not trained yet: k5" in result.err


def test_published_accuracy_is_shown_next_to_the_measured_one(cli, recipe_file, tmp_path):
    published = ("--set", "reference.source=a paper", "--set", "reference.test_accuracy=0.5")
    folder = tmp_path / "run"
    assert cli("train", "--recipe", recipe_file, *published, "--output", folder).status == 0
    for command in (["evaluate"], ["ensemble", "evaluate"]):
        assert "Published: 50.00 %" in cli(*command, folder).out
    assert json.loads(cli("evaluate", folder, "--format", "json").out)["members"][0]["published_accuracy"] == 0.5
