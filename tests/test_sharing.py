"""How many members at once should be faster: the estimate by hand, where one after another is, and who is told."""

import pytest
import torch

from fmcli import sharing
from fmcli.data import ImageSet
from fmcli.events import FasterAtOnce
from fmcli.recipe import load_recipe
from fmcli.recipe.layers import trace_layers
from fmcli.recipe.networks import Conv, Dense, Flatten, MaxPool
from fmcli.run import load_splits, train_run
from fmcli.sharing import faster_jobs

CPU = torch.device("cpu")


@pytest.fixture
def jobs(tiny_recipe, monkeypatch):
    """Return how many members of the tiny recipe, trained for long, should train at once."""
    monkeypatch.setattr(sharing, "_processes_in_memory", lambda splits: 99)

    def choose(*overrides, threads=4, device=CPU, epochs=10_000, members=None):
        recipe = load_recipe(str(tiny_recipe), [f"trainer.epochs={epochs}", *overrides])
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        names = [member.name for member in recipe.members]
        return faster_jobs(recipe, names[:members], load_splits(recipe), device)[0]

    return choose


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (3, 2), (16, 2)])
def test_small_networks_train_at_once_as_far_as_threads_and_members_go(jobs, threads, expected):
    assert jobs(threads=threads) == expected


@pytest.mark.parametrize(
    ("why", "overrides", "options"),
    [
        ("a training shorter than the start of a process", [], {"epochs": 20}),
        ("much work in each step", ["model.widths=[256, 512]", "trainer.batch_size=200"], {}),
        ("processes that augment", ['augment.albumentations=[{name="HorizontalFlip"}]'], {}),
        ("a GPU", [], {"device": torch.device("cuda")}),
    ],
)
def test_one_after_another_where_that_is_as_fast(jobs, why, overrides, options):
    assert jobs(*overrides, **options) == 1, why


def test_three_members_share_two_threads_in_two_turns_only_where_that_is_faster(jobs, tiny_recipe):
    alone = tiny_recipe.read_text("utf-8").split('\n[[members]]\nname = "k5"')[0]
    tiny_recipe.write_text(alone + "copies = 3\n", "utf-8")
    assert [jobs(threads=threads) for threads in (2, 3)] == [2, 3]
    wider = "model.widths=[64, 128]"
    assert [jobs(wider, threads=threads) for threads in (2, 3)] == [1, 3]


def test_memory_bounds_the_processes(tiny_recipe, monkeypatch):
    splits = load_splits(load_recipe(str(tiny_recipe)))
    pages = {"SC_PHYS_PAGES": 5 << 18, "SC_PAGE_SIZE": 1 << 12}  # 5 GiB
    monkeypatch.setattr(sharing.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(sharing.os, "sysconf_names", pages)
    assert sharing._processes_in_memory(splits) == 2
    monkeypatch.setattr(ImageSet, "is_mapped", True)
    monkeypatch.setattr(sharing, "_PROCESS", 5 << 29)
    assert sharing._processes_in_memory(splits) == 1
    monkeypatch.setattr(sharing.os, "sysconf_names", {})
    assert sharing._processes_in_memory(splits) == 1


def test_the_estimate_by_hand(monkeypatch):
    monkeypatch.setattr(sharing, "_BETWEEN", 1.0)
    monkeypatch.setattr(sharing, "_RATE", 10.0)
    monkeypatch.setattr(sharing, "_START", 100.0)
    works = [(2, 40.0), (3, 80.0), (1, 20.0)]  # on one thread 2 · 5, 3 · 9 and 1 · 3 seconds
    assert sharing._seconds(works, 1, 1) == 10 + 27 + 3
    assert sharing._seconds(works, 1, 2) == 2 * 3 + 3 * 5 + 1 * 2
    assert sharing._seconds(works, 2, 1) == max(110 + 103, 127)  # the third begins where the first ends
    assert sharing._seconds(works, 3, 1) == 127


def test_multiply_adds_by_hand():
    layers = [Conv(filters=4, kernel_size=(3, 2)), MaxPool(size=2), Flatten(), Dense(units=5)]
    traces = trace_layers(layers, (2, 8, 9), 5)
    assert [trace.multiply_adds for trace in traces] == [(2 * 3 * 2) * (4 * 6 * 8), 0, 0, (4 * 3 * 4) * 5]


def test_members_that_are_not_trained_do_not_count(jobs):
    assert (jobs(), jobs(members=1)) == (2, 1)


def test_a_training_that_begins_says_what_would_be_faster(tiny_recipe, monkeypatch, tmp_path):
    recipe = load_recipe(str(tiny_recipe), ["trainer.epochs=1"])
    asked = []
    monkeypatch.setattr("fmcli.run.faster_jobs", lambda recipe, names, splits, device: asked.append(names) or (2, 1.5))
    events = []
    train_run(recipe, tmp_path / "run", device=CPU, jobs=None, members=["k3"], reporter=events.append)
    assert [event for event in events if isinstance(event, FasterAtOnce)] == [FasterAtOnce(2, 1.5)]
    for options in ({"resume": True}, {"overwrite": True, "threads": 1}, {"overwrite": True, "jobs": 1}):
        train_run(recipe, tmp_path / "run", device=CPU, **{"jobs": None} | options)
    assert asked == [["k3"]]


def test_the_advice_names_the_option(cli, tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("fmcli.run.faster_jobs", lambda recipe, names, splits, device: (3, 1.449))
    told = cli("train", "-r", tiny_recipe, "--set", "trainer.epochs=1", "-o", tmp_path / "run").err
    assert "1.4 times as fast by --jobs 3" in told
