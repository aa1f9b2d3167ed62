"""Overrides as `key=value` strings."""

import json
import tomllib

import pytest

from fmcli.errors import RecipeError, Remedy
from fmcli.recipe.overrides import apply_overrides
from tests.recipe.helpers import MINIMAL, TWO, load_text, problems_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("3e-4", 3e-4),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("{ first = 3 }", {"first": 3}),
        ('"5"', "5"),
        ("idx:some/folder", "idx:some/folder"),
        (" spaced text ", "spaced text"),
        ("a=b", "a=b"),
        ("[1, 2", "[1, 2"),
        ("", ""),
    ],
)
def test_override_is_parsed_as_toml_or_else_is_text(text, value):
    result = apply_overrides({}, [f"table.key={text}"])["table"]["key"]
    assert result == value
    assert type(result) is type(value)


def test_shared_override_replaces_values_of_members():
    assert [member.optimizer.lr for member in load_text(TWO).members] == [0.5, 0.1]
    assert [member.optimizer.lr for member in load_text(TWO, "optimizer.lr=0.2").members] == [0.2, 0.2]
    assert [member.model.kernel_size for member in load_text(TWO, "model.kernel_size=7").members] == [7, 7]


@pytest.mark.parametrize(("name", "rates"), [("a", [9.0, 0.1]), ("b.2", [0.5, 9.0])])
def test_override_of_one_member_does_not_change_others(name, rates):
    recipe = load_text(TWO, f"members.{name}.optimizer.lr=9")
    assert [member.optimizer.lr for member in recipe.members] == rates


def test_override_changes_the_default_member():
    assert load_text(MINIMAL, "members.m1.model.kernel_size=7").members[0].model.kernel_size == 7


def test_later_override_wins_and_the_original_table_is_unchanged():
    table = tomllib.loads(TWO)
    before = json.dumps(table)
    changed = apply_overrides(table, ["trainer.epochs=3", "trainer.epochs=4", "members.a.trainer.epochs=5"])
    assert changed["trainer"]["epochs"] == 4
    assert json.dumps(table) == before


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.validation.fraction=0.1", "data.validation.stratify=true"], {"fraction": 0.1, "stratify": True}),
        (["data.validation.own=true"], {"own": True}),
        (["data.validation.fraction=0.1", "data.validation.first=7"], {"first": 7}),
    ],
)
def test_override_replaces_the_kind_of_validation(overrides, expected):
    for before in ({"first": 5}, {"fraction": 0.2, "seed": 3} if "fraction" not in expected else {"own": True}):
        table = {"data": {"validation": before}}
        assert apply_overrides(table, overrides) == {"data": {"validation": expected}}
    assert apply_overrides({}, overrides[:1])["data"]["validation"]


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", ".lr=3", "optimizer..lr=3", ""])
def test_override_without_key_and_value_is_refused(override):
    with pytest.raises(RecipeError, match=r"expected key=value") as caught:
        load_text(TWO, override)
    assert caught.value.remedies == (Remedy("set", "optimizer.lr=3e-4"),)


@pytest.mark.parametrize("override", ["members.c.optimizer.lr=3", "members.b.optimizer.lr=3", "members.c=3"])
def test_override_of_an_unknown_member_is_refused(override):
    with pytest.raises(RecipeError, match=r"no such member; (choose from: a, b\.2|did you mean 'b\.2')"):
        load_text(TWO, override)


def test_override_below_a_value_is_refused():
    with pytest.raises(RecipeError, match="lr is not a table"):
        load_text(TWO, "optimizer.lr.x=3")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.epoch=3", "trainer.epoch: unknown key; did you mean 'epochs'?"),
        ("trainer.epochs=many", "trainer.epochs: got 'many'; expected a whole number"),
        ("optimizer.name=adan", "optimizer: got 'adan' for 'name'; did you mean 'adam'?"),
        ("trainer=5", "trainer: got 5; expected a table"),
        ("tariner.epochs=3", "tariner: unknown key; did you mean 'trainer'?"),
        ("members=3", None),
    ],
)
def test_override_is_checked_like_the_recipe(override, problem):
    if problem is None:
        with pytest.raises(RecipeError):
            load_text(TWO, override)
    else:
        assert problem in problems_of(TWO, override)


def test_members_must_be_a_list_even_with_overrides():
    text = MINIMAL.replace("[data]", "members = 5\n[data]")
    for overrides in ([], ["trainer.epochs=3"]):
        assert problems_of(text, *overrides) == {"members: expected at least one [[members]] table, each with a name"}
