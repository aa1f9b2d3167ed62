"""Soups: averaged members, header, and output folder."""

import shutil
from pathlib import Path

import pytest
import torch

import fmcli.members.soup
from fmcli.checkpoints.checkpoint import load_checkpoint, read_header
from fmcli.checkpoints.layout import MODEL_FILE, RECIPE_FILE
from fmcli.checkpoints.tensors import weights_digest
from fmcli.data import load_source
from fmcli.ensemble.predictions import load_predictions, predictions_file
from fmcli.errors import UsageError
from fmcli.members.pool import open_pool
from fmcli.members.soup import make_soup
from fmcli.recipe import load_recipe, recipe_digest
from fmcli.training.run import train_run

CPU = torch.device("cpu")
VALIDATION_FILE = predictions_file("validation")
RECIPE = """
[data]
source = "idx:{folder}"
validation = {{ first = 40 }}
[model]
family = "sequential"
layers = [
  {{ type = "conv", filters = 4, kernel_size = 3 }}, {{ type = "dropout", rate = 0.5 }}, {{ type = "batch-norm" }},
  {{ type = "activation", function = "relu" }}, {{ type = "global-avg-pool" }}, {{ type = "dense", units = 4 }},
]
[optimizer]
lr = 1e-2
[trainer]
epochs = 4
keep = "snapshots"
[schedule]
name = "cyclic"
cycles = 4
[[members]]
name = "m"
"""


@pytest.fixture(scope="module")
def run(drawn_images, tmp_path_factory) -> Path:
    """A run of one member with three snapshots; read-only."""
    folder = tmp_path_factory.mktemp("soups")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=drawn_images), "utf-8")
    train_run(load_recipe(str(folder / "recipe.toml")), folder / "run", device=CPU)
    return folder / "run"


@pytest.fixture
def pool(run):
    return open_pool([run], device="cpu")


def set_accuracies(monkeypatch, accuracies):
    """Make the accuracy function return the given values in turn."""
    remaining = iter(accuracies)
    monkeypatch.setattr(fmcli.members.soup, "_accuracy", lambda *_: next(remaining))


# --- averaged members -----------------------------------------------------------------------------------


def test_the_same_members_make_the_same_soup_byte_for_byte(run, tmp_path):
    for name in ("one", "two"):
        torch.rand(7)  # the global random state must not matter
        make_soup(open_pool([run], device="cpu"), tmp_path / name, method="uniform")
    for file in (MODEL_FILE, VALIDATION_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_batch_norm_statistics_match_evaluation_without_dropout(pool, tmp_path):
    make_soup(pool, tmp_path / "soup", method="uniform")
    soup = load_checkpoint(tmp_path / "soup", device=CPU)
    images = load_source(soup.header.data).train.images[40:]
    seen = soup.model[0](soup.header.normalization(torch.tensor(images)))  # dropout is off
    [normalization] = [module for module in soup.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(normalization.running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(normalization.running_var, seen.var(dim=(0, 2, 3)))
    assert not any(module.training for module in soup.model.modules())


def test_greedy_leaves_out_members_that_lower_the_accuracy(pool, tmp_path, monkeypatch):
    set_accuracies(monkeypatch, [0.5, 0.9, 0.6, 0.7, 0.8, 0.9, 0.95])  # four members, then three soups
    made = make_soup(pool, tmp_path / "soup")
    assert made.members == ("m/snapshot-2", "m/snapshot-3", "m/snapshot-1")
    assert (made.accuracy, made.best_member) == (0.95, 0.9)


def test_greedy_keeps_the_best_member_if_no_average_is_as_good(cli, run, pool, tmp_path, monkeypatch):
    set_accuracies(monkeypatch, [0.5, 0.9, 0.6, 0.7, 0.8, 0.8, 0.8])
    made = cli("ensemble", "soup", run, "--output", tmp_path / "soup")
    assert made.status == 0
    assert "no average is as good as m/snapshot-2 on validation images; using its weights unchanged" in made.err
    soup, alone = load_checkpoint(tmp_path / "soup" / MODEL_FILE, device=CPU), pool.members[1]
    assert [one.name for one in soup.header.soup.ingredients] == ["m/snapshot-2"]
    assert weights_digest(soup.model.state_dict()) == alone.weights_digest


def test_the_command_prints_the_averaged_members(cli, run, tmp_path, monkeypatch):
    set_accuracies(monkeypatch, [0.5, 0.9, 0.6, 0.7, 0.8, 0.9, 0.95])
    made = cli("ensemble", "soup", run, "--output", tmp_path / "soup")
    assert (made.status, made.out) == (0, f"{tmp_path / 'soup'}\n"), made.err
    assert "averaged 3 of 4: m/snapshot-2, m/snapshot-3, m/snapshot-1" in made.err
    assert cli("ensemble", "evaluate", run, tmp_path / "soup").status == 0
    again = cli(
        "ensemble", "soup", tmp_path / "nowhere", "--output", tmp_path / "soup"
    )  # checked before members are read
    assert (again.status, "already has a soup" in again.err) == (2, True)


# --- header ---------------------------------------------------------------------------------------------


def test_the_header_names_the_averaged_members(pool, run, tmp_path):
    made = make_soup(pool, tmp_path / "soup", method="uniform")
    header, first = read_header(tmp_path / "soup"), read_header(run / "m")
    assert header.soup.method == "uniform"
    assert tuple(one.name for one in header.soup.ingredients) == made.members
    by_name = dict(zip(pool.names, pool.members, strict=True))
    for one in header.soup.ingredients:
        assert one.digest == weights_digest(by_name[one.name].checkpoint.model.state_dict())
    assert (header.name, header.epochs, header.snapshot, header.member.trainer.keep) == ("soup", 4, None, "last")
    assert header.recipe_digest == recipe_digest(header.member, header.data) != first.recipe_digest
    assert load_predictions(tmp_path / "soup" / VALIDATION_FILE).recipe_digest == header.recipe_digest
    assert first.soup is None


# --- output folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["run", "member", "notes", "file"])
def test_a_folder_without_a_soup_is_never_replaced(pool, run, tmp_path, monkeypatch, kind, overwrite):
    folder = tmp_path / "soup"
    if kind in ("run", "member"):
        shutil.copytree(run if kind == "run" else run / "m", folder)
    elif kind == "notes":
        folder.mkdir()
        (folder / ".notes").write_text("mine")
    else:
        folder.write_text("mine")
    before = {path: path.read_bytes() for path in [folder, *folder.rglob("*")] if path.is_file()}
    set_accuracies(monkeypatch, [])  # nothing is computed
    with pytest.raises(UsageError, match="is not an empty folder") as caught:
        make_soup(pool, folder, overwrite=overwrite)
    assert [remedy.action for remedy in caught.value.remedies] == ["output"]
    assert {path: path.read_bytes() for path in [folder, *folder.rglob("*")] if path.is_file()} == before


def test_a_soup_is_replaced_on_request(pool, tmp_path):
    folder = tmp_path / "soup"
    folder.mkdir()
    make_soup(pool, folder, method="uniform")
    (folder / predictions_file("test")).write_bytes(b"of the old soup")
    with pytest.raises(UsageError, match="already has a soup") as caught:
        make_soup(pool, folder, method="uniform")
    assert [remedy.action for remedy in caught.value.remedies] == ["replace", "output"]
    make_soup(pool, folder, method="uniform", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MODEL_FILE, VALIDATION_FILE])
    (folder / RECIPE_FILE).write_text("of a run whose folder a soup took over")
    with pytest.raises(UsageError, match="is not an empty folder"):
        make_soup(pool, folder, method="uniform", overwrite=True)
