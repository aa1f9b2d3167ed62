"""Ensemble files: round trip, members in other folders, and damaged or hostile files."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from fmcli.choices import RULE_NAMES
from fmcli.ensemble.file import (
    FORMAT,
    FittedOn,
    MemberPath,
    describe_ensemble,
    read_ensemble_file,
    write_ensemble_file,
)
from fmcli.ensemble.rules.vote import TIE_RULES
from fmcli.errors import CheckpointError, UsageError
from tests.helpers import make_combiner

FITTED_ON = FittedOn(split="validation", images=5000, data_digest="d" * 64, accuracy=0.93)
STACKING = {
    "coefficients": np.random.default_rng(0).normal(size=(3, 6)),
    "intercepts": np.array([0.1, -100.0, 1 / 3]),
}


def members_in(folder):
    return [MemberPath("k3", folder / "run" / "k3", "a" * 64), MemberPath("other/k5", folder / "other" / "k5.csv")]


def write(folder, rule, **changes):
    path = folder / "chosen.toml"
    write_ensemble_file(path, describe_ensemble(members_in(folder), rule, folder, **changes))
    return path


def assert_same_rule(found, expected):
    assert type(found.rule) is type(expected.rule)
    assert found.rule.parameters() == expected.rule.parameters()
    for name in ("tie", "weights", "groups"):
        assert getattr(found.rule, name) == getattr(expected.rule, name)
    assert found.temperature == expected.temperature


def edit(path, change):
    """Change values in an ensemble file."""
    table = tomllib.loads(path.read_text("utf-8"))
    change(table)
    path.write_text(tomli_w.dumps(table), "utf-8")
    return path


def assert_refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_ensemble_file(path)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


# --- round trip ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", RULE_NAMES)
@pytest.mark.parametrize("tie", sorted(TIE_RULES))
def test_a_fitted_rule_survives_a_round_trip(tmp_path, vote, tie):
    weights = (0.1, 2 / 3) if vote.startswith("weighted") else None
    parameters = STACKING if vote == "stacking" else {}
    rule = make_combiner(vote, tie, weights, ("3", "5"), temperature=1.2345678901234567, **parameters)
    content, paths = read_ensemble_file(write(tmp_path, rule, fitted_on=FITTED_ON))
    assert_same_rule(content.combiner(), rule)
    assert content.fitted_on == FITTED_ON
    assert paths == [member.path for member in members_in(tmp_path)]
    assert [(member.name, member.digest) for member in content.members] == [("k3", "a" * 64), ("other/k5", "")]


def test_a_combiner_votes_the_same_after_a_round_trip(tmp_path):
    rule = make_combiner("stacking", groups=("", ""), temperature=0.7, **STACKING)
    logits = np.random.default_rng(1).normal(size=(2, 20, 3))
    combiner = read_ensemble_file(write(tmp_path, rule))[0].combiner()
    np.testing.assert_array_equal(combiner(logits).probabilities, rule(logits).probabilities)


def test_the_file_can_be_read_and_edited(tmp_path):
    path = write(tmp_path, make_combiner("weighted-soft", weights=(2.0, 1.0)))
    text = path.read_text("utf-8")
    assert text.startswith("# An ensemble of fmcli")
    assert f"fmcli ensemble evaluate {path}" in text
    path.write_text(
        "# my comment\n" + text.replace("2.0", "3").replace('tie = "probability"', 'tie = "first"'), "utf-8"
    )
    rule = read_ensemble_file(path)[0].combiner().rule
    assert (rule.weights, rule.tie) == ((3.0, 1.0), "first")


def test_a_folder_can_be_moved_with_its_members(tmp_path):
    write(tmp_path / "here", make_combiner())
    (tmp_path / "here").rename(tmp_path / "there")
    paths = read_ensemble_file(tmp_path / "there" / "chosen.toml")[1]
    assert paths == [member.path for member in members_in(tmp_path / "there")]


def test_members_are_found_from_any_working_directory(tmp_path, monkeypatch):
    write(tmp_path, make_combiner())
    monkeypatch.chdir(tmp_path)
    assert describe_ensemble([MemberPath("k3", Path("run/k3"))], make_combiner(), Path()).members[0].path == "run/k3"
    assert read_ensemble_file(Path("chosen.toml"))[1][0].resolve() == tmp_path / "run" / "k3"


def test_the_folder_itself_can_be_the_member(tmp_path):
    content = describe_ensemble([MemberPath("k3", tmp_path)], make_combiner(), tmp_path)
    write_ensemble_file(tmp_path / "alone.toml", content)
    assert read_ensemble_file(tmp_path / "alone.toml")[1] == [tmp_path]


# --- members in other folders ----------------------------------------------------------------------------


@pytest.mark.parametrize("member_path", ["../k3", "../../k3", "/elsewhere/k3"])
def test_a_member_outside_the_folder_is_refused_on_writing(tmp_path, member_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(UsageError, match="k3 is not below") as caught:
        describe_ensemble([MemberPath("k3", folder / member_path)], make_combiner(), folder)
    assert [remedy.action for remedy in caught.value.remedies] == ["output"]


def test_a_link_that_leads_outside_the_folder_is_refused_on_writing(tmp_path):
    folder = tmp_path / "ensembles"
    folder.mkdir()
    (folder / "k3").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is not below"):
        describe_ensemble([MemberPath("k3", folder / "k3")], make_combiner(), folder)


@pytest.mark.parametrize("member_path", ["../k3", "run/../../k3", "..", "/etc/passwd", "//server/k3"])
def test_a_member_outside_the_folder_is_refused_on_reading(tmp_path, member_path):
    path = edit(write(tmp_path, make_combiner()), lambda table: table["members"][0].update(path=member_path))
    assert "outside its folder" in assert_refused(path).message


# --- damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "[data]\nsource = 'fashion-mnist'\n", "format = 3"])
def test_a_recipe_or_another_file_is_refused_with_a_hint(tmp_path, content):
    (tmp_path / "recipe.toml").write_text(content)
    error = assert_refused(tmp_path / "recipe.toml")
    assert "is not an ensemble file" in error.message
    assert "a recipe is for fmcli train" in error.hint


def test_a_file_of_another_version_is_refused_and_the_message_has_both_formats(tmp_path):
    (tmp_path / "ensemble.toml").write_text("format = 'fmcli-ensemble-9'")
    error = assert_refused(tmp_path / "ensemble.toml")
    assert "has the format 'fmcli-ensemble-9', but this version of fmcli reads 'fmcli-ensemble-1'" in error.message
    assert "use the version of fmcli that wrote the file" in error.hint


BAD = {
    "no members": lambda table: table.update(members=[]),
    "members missing": lambda table: table.pop("members"),
    "no rule": lambda table: table.pop("vote"),
    "unknown rule": lambda table: table.update(vote="plurality"),
    "unknown tie rule": lambda table: table.update(tie="last"),
    "unknown key": lambda table: table.update(colour="red"),
    "unknown key of a member": lambda table: table["members"][1].update(colour="red"),
    "temperature of zero": lambda table: table.update(temperature=0.0),
    "temperature below zero": lambda table: table.update(temperature=-1.0),
    "temperature that is not finite": lambda table: table.update(temperature=float("nan")),
    "temperature too small to divide by": lambda table: table.update(temperature=1e-320),
    "weight below zero": lambda table: table["members"][1].update(weight=-1.0),
    "weight that is not finite": lambda table: table["members"][1].update(weight=float("inf")),
    "weight of too many digits": lambda table: table["members"][1].update(weight=10**400),
    "weight as text": lambda table: table["members"][1].update(weight="1"),
    "weight for some members": lambda table: table["members"][1].update(weight=1.0),
    "weights all zero": lambda table: [member.update(weight=0.0) for member in table["members"]],
    "group for some members in a two-level vote": lambda table: table.update(vote="two-level"),
    "empty path": lambda table: table["members"][1].update(path=""),
    "path twice": lambda table: table["members"][1].update(path="./run//k3"),
    "name twice": lambda table: table["members"][1].update(name="k3"),
    "name missing": lambda table: table["members"][1].pop("name"),
    "split": lambda table: table.update(fitted_on={"split": "dev", "images": 1, "data_digest": "", "accuracy": 1.0}),
    "ragged stacking": lambda table: table.update(
        stacking={"coefficients": [[0.0] * 6, [0.0] * 6, [0.0] * 5], "intercepts": [0.0] * 3}
    ),
    "stacking of other members": lambda table: table.update(
        stacking={"coefficients": [[0.0] * 9] * 3, "intercepts": [0.0] * 3}
    ),
    "stacking without classes": lambda table: table.update(stacking={"coefficients": [], "intercepts": [0.0]}),
    "stacking that is not finite": lambda table: table.update(
        stacking={"coefficients": [[0.0, float("nan")]], "intercepts": [0.0]}
    ),
    "stacking coefficient too large": lambda table: table.update(
        stacking={"coefficients": [[0.0, 1e308]], "intercepts": [0.0]}
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_with_invalid_values_is_refused(tmp_path, kind):
    assert_refused(edit(write(tmp_path, make_combiner()), BAD[kind]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weight below zero", "members.1.weight"),
        ("weight for some members", "members without a weight: k3"),
        ("unknown rule", "vote: got 'plurality'; choose from: majority, weighted-majority, "),
        ("group for some members in a two-level vote", "members without a group: k3, other/k5"),
        ("ragged stacking", "a row of 6 values for each of 3 intercepts; got 3 rows with [5, 6] values"),
    ],
)
def test_the_invalid_value_is_named(tmp_path, kind, message):
    path = edit(write(tmp_path, make_combiner()), BAD[kind])
    assert message in assert_refused(path).message


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"format = ", b"x = " + b"[" * 10_000, b"format = " + b"1" * 5000, b"\0"],
    ids=["not text", "not TOML", "nested too deep", "number too long", "NUL byte"],
)
def test_a_file_that_cannot_be_parsed_is_refused(tmp_path, content):
    (tmp_path / "chosen.toml").write_bytes(content)
    assert_refused(tmp_path / "chosen.toml")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_missing_file_is_refused(tmp_path, name):
    assert_refused(tmp_path / name)


def test_text_from_a_file_cannot_control_the_terminal(tmp_path):
    for content in ('format = "\\u001b[31m"', f'format = "{FORMAT.name}"\n"\\u001b[31m" = 1\n'):
        (tmp_path / "chosen.toml").write_text(content)
        error = assert_refused(tmp_path / "chosen.toml")
        assert "\x1b" not in error.message
