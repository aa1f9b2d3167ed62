import json
import os
import subprocess
import sys
import tomllib

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmcli.errors import ExitStatus, RecipeError, Remedy
from fmcli.recipe import (
    KNOWN_SOURCES,
    AlbumentationsSpec,
    AugmentSpec,
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    Recipe,
    ReferenceSpec,
    SourceFacts,
    TrainerSpec,
    apply_overrides,
    data,
    dump_recipe,
    families,
    find_recipe,
    load_recipe,
    optimizer,
    recipe_description,
    recipe_digest,
    recipe_keys,
    recipe_schema,
    resolve_recipe,
    schedule,
    search,
    shipped_recipes,
    value_at,
)
from fmcli.recipe import layers as n
from fmcli.recipe.tracing import trace_recipe

MODEL = 'model = { family = "kernel-cnn", form = "pooled", kernel_size = 3, widths = [4] }\n'
MINIMAL = MODEL + '[data]\nsource = "fashion-mnist"\n'


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_recipe


def load_text(text, *overrides):
    return resolve_recipe(apply_overrides(tomllib.loads(text), overrides), name="mine")


def problems_of(text, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_text(text, *overrides)
    return set(caught.value.problems)


def sequential(*layers):
    return f'model = {{ family = "sequential", layers = [{", ".join(layers)}] }}\n[data]\nsource = "fashion-mnist"\n'


# --- reading ------------------------------------------------------------------------------------------------


def test_recipes_are_shipped():
    assert "quick" in shipped_recipes()


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_loads_by_name_and_round_trips(name, write):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe == load_recipe(write(dump_recipe(recipe), "another-name.toml"))


def test_recipe_is_found_by_path_and_by_folder(write, tmp_path):
    path = write(MINIMAL, "recipe.toml")
    assert load_recipe(path) == load_recipe(f"{tmp_path}/")
    assert load_recipe(path).name == "recipe"


def test_file_without_toml_ending_is_found(write, tmp_path, monkeypatch):
    write(MINIMAL, "plain")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("plain").name == "plain"


@pytest.mark.parametrize("name", ["nowhere.toml", "no/where", "./quick", "quick\0.toml"])
def test_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no recipe at") as caught:
        load_recipe(name)
    assert caught.value.exit_status == ExitStatus.USAGE
    assert caught.value.hint


def test_mistyped_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="'quikc'; did you mean 'quick'"):
        load_recipe("quikc")


def test_folder_without_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(f"{tmp_path}/")


@pytest.mark.parametrize("text", ["[data", "a = ", "data = 1\ndata = 2", "x = " + "[" * 5000])
def test_invalid_toml_is_a_recipe_error(text, write):
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML"):
        load_recipe(write(text))


def test_text_that_is_not_utf8_is_refused_with_its_place(write):
    with pytest.raises(RecipeError, match=r"mine\.toml is not UTF-8 text: byte 2"):
        load_recipe(write(b"# \xff\n"))


def test_file_larger_than_a_mebibyte_is_refused(write):
    largest = MINIMAL + "#\n" * (((1 << 20) - len(MINIMAL)) // 2)
    largest += "#" * ((1 << 20) - len(largest))
    assert load_recipe(write(largest))
    with pytest.raises(RecipeError, match="larger than 1048576 bytes"):
        load_recipe(write(largest + "#"))


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("# Says it.\n# More.\n", "Says it."),
        ("\n\n#Says it.  \r\n", "Says it."),
        ("#:schema ./recipe.schema.json\n# Says it.\n", "Says it."),
        ("a = 1\n# Too late.\n", ""),
        ("", ""),
    ],
)
def test_description_is_the_first_comment_line(text, description):
    assert recipe_description(text) == description


# --- members ------------------------------------------------------------------------------------------------


def test_without_members_there_is_one():
    [member] = load_text(MINIMAL).members
    assert member.name == "m1"
    assert member.model.kernel_size == 3


def test_defaults_are_filled_in():
    recipe = load_text(MINIMAL)
    assert recipe.ensemble == EnsembleSpec()
    assert recipe.members[0].trainer == TrainerSpec()
    assert recipe.members[0].augment == AugmentSpec()
    assert recipe.members[0].optimizer.name == "adam"
    assert recipe.reference is None


def test_member_table_overrides_key_by_key():
    recipe = load_text(
        MINIMAL
        + """
        [optimizer]
        name = "sgd"
        momentum = 0.9
        lr = 0.5
        [trainer]
        epochs = 7
        batch_size = 32
        [[members]]
        name = "a"
        [[members]]
        name = "b"
        model = { kernel_size = 5 }
        optimizer.lr = 0.25
        trainer.epochs = 9
        augment.flip = 0.5
        """
    )
    a, b = recipe.members
    assert (a.model.kernel_size, a.optimizer.lr, a.trainer.epochs, a.augment.flip) == (3, 0.5, 7, 0)
    assert (b.model.kernel_size, b.optimizer.lr, b.trainer.epochs, b.augment.flip) == (5, 0.25, 9, 0.5)
    assert b.model.widths == a.model.widths
    assert (b.optimizer.name, b.optimizer.momentum, b.trainer.batch_size) == ("sgd", 0.9, 32)


def test_another_family_starts_afresh():
    recipe = load_text(
        MINIMAL
        + """
        [[members]]
        name = "spelled"
        model = { family = "sequential", layers = [{ type = "flatten" }, { type = "dense", units = 10 }] }
        """
    )
    assert recipe.members[0].model == families.SequentialSpec(layers=(n.Flatten(), n.Dense(units=10)))


def test_another_optimizer_starts_afresh():
    recipe = load_text(
        MINIMAL
        + """
        [optimizer]
        lr = 0.5
        betas = [0.5, 0.6]
        [[members]]
        name = "same"
        optimizer.name = "adam"
        [[members]]
        name = "other"
        optimizer.name = "sgd"
        """
    )
    same, other = recipe.members
    assert same.optimizer == optimizer.AdamSpec(lr=0.5, betas=(0.5, 0.6))
    assert other.optimizer == optimizer.SgdSpec()


def test_list_of_a_member_replaces_the_shared_one():
    recipe = load_text(MINIMAL + '[[members]]\nname = "wide"\nmodel.widths = [8, 9]\n')
    assert recipe.members[0].model.widths == (8, 9)


def test_run_is_named_by_the_recipe_itself_if_it_says_so():
    assert load_text(MINIMAL).name == "mine"
    assert load_text('name = "yours"\n' + MINIMAL).name == "yours"


# --- copies -------------------------------------------------------------------------------------------------

COPIES = (
    MINIMAL
    + """
[[members]]
name = "k3"
copies = 3
trainer.epochs = 7
[[members]]
name = "k5"
model.kernel_size = 5
"""
)


def test_copies_are_members_alike_but_for_their_names():
    recipe = load_text(COPIES)
    assert [member.name for member in recipe.members] == ["k3-1", "k3-2", "k3-3", "k5"]
    assert {type(member) for member in recipe.members} == {MemberSpec}
    first, *others, _ = recipe.members
    assert first.trainer.epochs == 7
    for other in others:
        assert other.model_copy(update={"name": "k3-1"}) == first


def test_one_copy_keeps_its_name():
    assert [member.name for member in load_text(COPIES.replace("copies = 3", "copies = 1")).members] == ["k3", "k5"]


def test_copies_are_written_out_as_plain_members_and_read_back(write):
    recipe = load_text(COPIES)
    text = dump_recipe(recipe)
    assert "copies" not in text
    again = load_recipe(write(text))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_digest_of_a_copy_is_that_of_such_a_member():
    plain = load_text(COPIES.replace("copies = 3", "").replace('"k3"', '"k3-2"')).members[0]
    assert recipe_digest(load_text(COPIES).members[1]) == recipe_digest(plain)


@pytest.mark.parametrize(
    ("override", "problems"),
    [
        ("members.k3.copies=0", {"members.k3.copies: got 0; expected a number above 0"}),
        ("members.k3.copies=10000000000", {"members.k3.copies: got 10000000000; expected a number of at most 1000"}),
        ("members.k3.copies=2.5", {"members.k3.copies: got 2.5; expected a whole number"}),
        ("members.k3.copies=true", {"members.k3.copies: got true; expected a whole number"}),
        ("members.k3.copy=2", {"members.k3.copy: unknown key; did you mean 'copies'?"}),
        ("members.k5.name=k3-2", {"members: two are named 'k3-2'"}),
        ("members.k5.name=K3-2", {"members: two are named 'k3-2'", "members: two are named 'K3-2'"}),
        ("members.k3.model.kernel_sise=3", {"members.k3.model.kernel_sise: unknown key; did you mean 'kernel_size'?"}),
        # Said once, not for each copy.
        ("members.k3.schedule={name='cyclic', cycles=2}",
         {"members.k3.trainer.epochs: got 7; expected a multiple of the schedule's 2 cycles"}),
    ],
)  # fmt: skip
def test_problem_of_copies_is_named(override, problems):
    assert problems_of(COPIES, override) == problems


def test_impossible_network_of_copies_is_said_once():
    [problem] = problems_of(COPIES, "members.k3.model.form=plain", "members.k3.model.kernel_size=30")
    assert problem.startswith("members.k3.model.layers[0]: a 30×30 kernel")


def test_copies_whose_names_grow_too_long_are_refused():
    name = "k" * 62
    assert load_text(COPIES.replace("k3", name), f"members.{name}.copies=9").members[8].name == f"{name}-9"
    [problem] = problems_of(COPIES.replace("k3", name), f"members.{name}.copies=10")
    assert problem == f"members.{name}.copies: got 10; the last name, '{name}-10', is longer than 64 characters"


def test_override_reaches_all_copies_and_none_alone():
    recipe = load_text(COPIES, "members.k3.optimizer.lr=9")
    assert [member.optimizer.lr for member in recipe.members] == [9.0, 9.0, 9.0, 1e-3]
    with pytest.raises(RecipeError, match=r"no such member; did you mean 'k3'"):
        load_text(COPIES, "members.k3-2.optimizer.lr=9")


def test_value_of_copies_is_that_of_the_first():
    recipe = load_text(COPIES)
    assert value_at(recipe, "members.k3.trainer.epochs") == value_at(recipe, "members.k3-2.trainer.epochs") == 7
    assert value_at(recipe, "members.k5.trainer.epochs") == 10


def test_member_that_is_called_like_a_first_copy_hides_no_other():
    recipe = load_text(MINIMAL + '[[members]]\nname = "k-1"\ntrainer.epochs = 1\n[[members]]\nname = "k"\n')
    assert value_at(recipe, "members.k.trainer.epochs") == 10


# --- overrides ----------------------------------------------------------------------------------------------

TWO = (
    MINIMAL
    + '[optimizer]\nlr = 0.5\n[[members]]\nname = "a"\n[[members]]\nname = "b.2"\noptimizer.lr = 0.1\n'
    + "model = { kernel_size = 5 }\n"
)


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
def test_override_is_read_as_toml_and_else_as_text(text, value):
    result = apply_overrides({}, [f"table.key={text}"])["table"]["key"]
    assert result == value
    assert type(result) is type(value)


def test_override_reaches_every_member_even_where_one_says_otherwise():
    assert [member.optimizer.lr for member in load_text(TWO).members] == [0.5, 0.1]
    assert [member.optimizer.lr for member in load_text(TWO, "optimizer.lr=0.2").members] == [0.2, 0.2]
    assert [member.model.kernel_size for member in load_text(TWO, "model.kernel_size=7").members] == [7, 7]


@pytest.mark.parametrize(("name", "rates"), [("a", [9.0, 0.1]), ("b.2", [0.5, 9.0])])
def test_override_of_a_member_reaches_it_alone(name, rates):
    recipe = load_text(TWO, f"members.{name}.optimizer.lr=9")
    assert [member.optimizer.lr for member in recipe.members] == rates


def test_override_reaches_the_default_member():
    assert load_text(MINIMAL, "members.m1.model.kernel_size=7").members[0].model.kernel_size == 7


def test_later_override_wins_and_the_table_is_left_alone():
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
def test_another_way_to_validate_takes_the_place_of_the_first(overrides, expected):
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
    with pytest.raises(RecipeError, match="lr is a value, not a table"):
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


def test_members_that_are_no_list_are_a_problem_even_under_overrides():
    text = MINIMAL.replace("[data]", "members = 5\n[data]")
    for overrides in ([], ["trainer.epochs=3"]):
        assert problems_of(text, *overrides) == {"members: expected one or more [[members]] tables, each with a name"}


# --- problems -----------------------------------------------------------------------------------------------

BAD = """
colour = "red"
name = 7

[data]
source = "fashion-mnits"
validation = { frist = 5000 }
normalize = "unitt"

[augment]
rotate = "ten"
flip = 1.5
erase_area = [0.1]

[model]
family = "kernel-cnn"
form = "pool"
widths = []

[optimizer]
name = "adan"

[schedule]
name = "exponential"

[trainer]
epochs = 0
batch_size = 12.5
full_batch = 1
epoch = 3

[ensemble]
vote = "mojority"
tie = 3

[[members]]
name = "a/b"
model = { kernel_size = true }

[[members]]
name = "fine"
model = { kernel_sise = 3 }
tainer = {}

[[members]]
name = "fine"
model = { family = "sequential", layers = [{ type = "conv", filters = -1, kernel_size = 3 }, { type = "dens" }] }

[reference]
test_accuracy = 93.4
"""


def test_every_problem_is_reported_at_once():
    assert problems_of(BAD) == {
        "colour: unknown key; choose from: name, data, model, augment, optimizer, schedule, trainer, ensemble, "
        "members, reference, search",
        "name: got 7; expected text that can name a folder",
        "data.source: got 'fashion-mnits'; did you mean 'fashion-mnist'?",
        "data.validation: got {'frist': 5000}; expected one of the keys first, fraction, own",
        "data.normalize: got 'unitt'; did you mean 'unit'? or a table",
        "augment.rotate: got 'ten'; expected a number",
        "augment.flip: got 1.5; expected a number of at most 1.0",
        "augment.erase_area[1]: missing",
        "model.form: got 'pool'; did you mean 'pooled'?",
        "model.widths: got []; expected at least 1 of them",
        "optimizer: got 'adan' for 'name'; did you mean 'adam'?",
        "schedule.gamma: missing",
        "trainer.epochs: got 0; expected a number above 0",
        "trainer.batch_size: got 12.5; expected a whole number",
        "trainer.full_batch: got 1; expected true or false",
        "trainer.epoch: unknown key; did you mean 'epochs'?",
        "ensemble.vote: got 'mojority'; did you mean 'majority'?",
        "ensemble.tie: got 3; expected 'probability', 'lowest' or 'first'",
        "members.a/b.name: got 'a/b'; expected letters, digits, '_', '.' and '-' only, at most 64",
        "members.a/b.model.kernel_size: got true; expected a whole number or a list [ … ]",
        "members.fine.model.kernel_sise: unknown key; did you mean 'kernel_size'?",
        "model.kernel_size: missing",
        "members.fine.tainer: unknown key; did you mean 'trainer'?",
        "members: two are named 'fine'",
        "members.fine.model.layers[0].filters: got -1; expected a number above 0",
        "members.fine.model.layers[1]: got 'dens' for 'type'; did you mean 'dense'?",
        "reference.source: missing",
        "reference.test_accuracy: got 93.4; expected a number of at most 1.0",
    }


def test_message_counts_and_lists_the_problems():
    with pytest.raises(RecipeError) as caught:
        load_text(BAD)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"recipe mine has {len(caught.value.problems)} problems:"
    assert [line.strip() for line in lines[1:]] == list(caught.value.problems)
    with pytest.raises(RecipeError, match="recipe mine has a problem:"):
        load_text(MINIMAL + "nothing = 3\n")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", {"data: missing table", "model: missing"}),
        (MINIMAL + "[trainer]\nseed = 4294967296\n",
         {"trainer.seed: got 4294967296; expected a number below 4294967296"}),
        ("trainer.seed = -1\n",
         {"data: missing table", "model: missing", "trainer.seed: got -1; expected a number of at least 0"}),
        ("data = 3\n" + MODEL, {"data: got 3; expected a table"}),
        (MINIMAL + "[optimizer]\nlr = 1\n[[optimizer.lr2]]\n", {"optimizer.lr2: unknown key; did you mean 'lr'?"}),
        (MINIMAL + "[optimizer]\nlr = inf\n", {"optimizer.lr: got inf; expected a finite number"}),
        (MINIMAL + "normalize = { mean = nan }\n", {"data.normalize.mean: got nan; expected a finite number"}),
        (MINIMAL + "resplit = { train = 0.5, validation = 0.1, seed = -1 }\n",
         {"data.resplit.seed: got -1; expected a number of at least 0"}),
        (MINIMAL + "resplit = { train = 0.8, validation = 0.2 }\n",
         {"data.resplit: train + validation must be below 1, so that images are left for the test set"}),
        (MINIMAL + "resplit = { train = 0.5, validation = 0.2 }\nvalidation = { own = true }\n",
         {"data: give either validation or resplit, not both"}),
        (sequential('{ type = "conv", filters = 3, kernel_size = [3, "3"] }'),
         {"model.layers[0].kernel_size[1]: got '3'; expected a whole number"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = [5, 3]"),
         {"model: kernel_size takes one number, or one for each width (1); got 2"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = []"),
         {"model: kernel_size takes one number, or one for each width (1); got 0"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = [0]"),
         {"model.kernel_size[0]: got 0; expected a number above 0"}),
        (MINIMAL + "[optimizer]\nname = 'sgd'\nnesterov = true\n", {"optimizer: nesterov needs a momentum above 0"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\n", {"schedule.cycles: missing"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 0\n", {"schedule.cycles: got 0; expected a number above 0"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 5\nwarmup = 0.2\n",
         {"schedule: warmup must end within the first of 5 cycles, got 0.2"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 4\n",
         {"members.m1.trainer.epochs: got 10; expected a multiple of the schedule's 4 cycles"}),
        (MINIMAL + "[trainer]\nkeep = 'snapshots'\n",
         {"members.m1.trainer.keep: got 'snapshots', which needs a cyclic schedule; "
          'set name = "cyclic" and cycles = … in [schedule]'}),
        (MINIMAL + "validation = { first = 9 }\n[schedule]\nname = 'cyclic'\ncycles = 5\n[trainer]\n"
         "keep = 'snapshots'\npatience = 3\n",
         {"trainer: keep = 'snapshots' needs whole cycles, so it cannot be combined with patience"}),
        (MINIMAL + "[trainer]\nkeep = 'snapshot'\n", {"trainer.keep: got 'snapshot'; did you mean 'snapshots'?"}),
        (MINIMAL + "[trainer]\nbagging = 0\n", {"trainer.bagging: got 0; expected a number above 0.0"}),
        (MINIMAL + "[trainer]\nbagging = 1.5\n", {"trainer.bagging: got 1.5; expected a number of at most 1.0"}),
        (MINIMAL + "[trainer]\nswa = 1\n", {"trainer.swa: got 1; expected a number below 1.0"}),
        (MINIMAL + "[trainer]\nswa = 0.0\n", {"trainer.swa: got 0.0; expected a number above 0.0"}),
        (MINIMAL + "[trainer]\nswa = 0.5\nweight_average = 0.9\n",
         {"trainer: swa averages the last epochs, so it cannot be combined with weight_average"}),
        (MINIMAL + "validation = { first = 9 }\n[trainer]\nswa = 0.5\nkeep = 'best'\npatience = 0\n",
         {"trainer: swa averages the last epochs, so it cannot be combined with keep = 'best' or patience"}),
        (MINIMAL + "[trainer]\nweight_average = 0.9\n[[members]]\nname = 'a'\ntrainer.swa = 0.5\n",
         {"members.a.trainer: swa averages the last epochs, so it cannot be combined with weight_average"}),
        (MINIMAL + "[[members]]\nname = 'Snapshot-2'\n",
         {"members.Snapshot-2.name: got 'Snapshot-2', which is reserved for members' snapshots; "
          "choose another name"}),
        (MINIMAL + "[[members]]\nname = 'snapshot'\ncopies = 2\n",
         {"members.snapshot.name: got 'snapshot', which is reserved for members' snapshots; "
          "choose another name"}),
        (MINIMAL + "[[members]]\nname = 'Last-Good'\n",
         {"members.Last-Good.name: got 'Last-Good', which is reserved for weights from before divergence; "
          "choose another name"}),
        (MINIMAL + "[augment]\nerase_area = [0.5, 0.1]\n", {"augment: erase_area must be [smallest, largest]"}),
        (MINIMAL + "[[members]]\n", {"members[0].name: missing"}),
        (MINIMAL + "[[members]]\nname = ['a']\n", {"members[0].name: got ['a']; expected text in quotes"}),
        ("members = []\n" + MINIMAL, {"members: expected one or more [[members]] tables, each with a name"}),
        (MINIMAL.replace("kernel-cnn", "kernel-cn"),
         {"model: got 'kernel-cn' for 'family'; did you mean 'kernel-cnn'?"}),
        (MINIMAL.replace('family = "kernel-cnn", ', ""), {"model: missing key 'family'"}),
    ],
)  # fmt: skip
def test_problem_is_named_with_its_path(text, problems):
    assert problems_of(text) == problems


@pytest.mark.parametrize("source", ["", "idx:", "idx", "csv:here", "fashion_mnist", ":"])
def test_unknown_source_is_refused(source):
    [problem] = problems_of(MINIMAL.replace("fashion-mnist", source))
    assert problem.startswith("data.source: ")


SHARED = "trainer.epochs: got 'x'; expected a whole number"


@pytest.mark.parametrize(
    ("member", "problems"),
    [
        # Said by the shared table, or missing from both: once, for all members.
        ("", {"model.widths: missing", SHARED}),
        # Said by the member.
        ("trainer = { epochs = 'y' }\nmodel.widths = [1]",
         {"members.a.trainer.epochs: got 'y'; expected a whole number", SHARED}),
        # The member's own family takes nothing from the shared table, so that cannot lack anything.
        ("model = { family = 'sequential' }",
         {"members.a.model.layers: missing", "model.widths: missing", SHARED}),
        # A value where a table belongs.
        ("trainer = 0\nmodel.widths = [1]",
         {"members.a.trainer: got 0; expected a table", SHARED}),
    ],
)  # fmt: skip
def test_problem_stands_where_it_is_to_be_mended(member, problems):
    text = """
        [data]
        source = "fashion-mnist"
        [model]
        family = "kernel-cnn"
        form = "pooled"
        kernel_size = 3
        [trainer]
        epochs = "x"
        [[members]]
        name = "b"
        MODEL
        [[members]]
        name = "a"
        """.replace("MODEL", "" if "model.widths: missing" in problems else "model.widths = [1]")
    assert problems_of(text + member) == problems


def test_shared_value_where_a_table_belongs_is_not_hidden_by_members():
    text = "trainer = 5\n" + MINIMAL + "[[members]]\nname = 'a'\ntrainer.epochs = 3\n"
    assert problems_of(text) == {"trainer: got 5; expected a table"}


def test_control_characters_in_a_recipe_do_not_reach_the_terminal():
    with pytest.raises(RecipeError) as caught:
        load_text(MINIMAL + '"\\u001b[31m" = 3\nclasses = "\\u001b[31m"\n')
    assert "\x1b" not in str(caught.value)


# --- impossible networks ------------------------------------------------------------------------------------


def test_kernel_larger_than_its_feature_map_is_named_with_member_and_layer():
    text = """
        [data]
        source = "fashion-mnist"
        [model]
        family = "kernel-cnn"
        widths = [4, 4, 4]
        [[members]]
        name = "fits"
        model.kernel_size = 9
        [[members]]
        name = "too-large"
        model.kernel_size = 11
        [[members]]
        name = "far-too-large"
        model.kernel_size = 30
        """
    assert problems_of(text) == {
        "members.too-large.model.layers[4]: a 11×11 kernel is larger than its 8×8 feature map; "
        "use fewer or smaller ones, or padding = 'same'",
        "members.far-too-large.model.layers[0]: a 30×30 kernel is larger than its 28×28 feature map; "
        "use fewer or smaller ones, or padding = 'same'",
    }


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (['{ type = "dense", units = 10 }'], "layers[0]: dense needs flat input, got 1×28×28; put a flatten before it"),
        (
            ['{ type = "flatten" }', '{ type = "conv", filters = 3, kernel_size = 3 }'],
            "layers[1]: conv needs an image, got 784; put it before the flatten",
        ),
        (
            ['{ type = "max-pool", size = [29, 2] }'],
            "layers[0]: a 29×2 window is larger than its 28×28 feature map; "
            "use fewer or smaller ones, or padding = 'same'",
        ),
        (
            ['{ type = "flatten" }', '{ type = "dense", units = 9 }'],
            "layers: the last returns 9; expected one logit for each of 10 classes",
        ),
        (
            ['{ type = "batch-norm" }'],
            "layers: the last returns 1×28×28; expected one logit for each of 10 classes",
        ),
    ],
)
def test_impossible_layers_are_named(layers, problem):
    assert problems_of(sequential(*layers)) == {f"members.m1.model.{problem}"}


def test_size_of_images_in_a_folder_decides_when_it_is_known():
    recipe = load_text(MINIMAL.replace("fashion-mnist", "idx:here").replace('form = "pooled"', 'form = "plain"'))
    assert set(trace_recipe(recipe, SourceFacts((1, 3, 3), ("a", "b")))) == {"m1"}
    with pytest.raises(RecipeError, match=r"members\.m1\.model\.layers\[0\]: a 3×3 kernel is larger than its 2×3"):
        trace_recipe(recipe, SourceFacts((1, 2, 3), ("a", "b")))


# --- writing ------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e9, 1e9)
ABOVE_ZERO = st.floats(1e-9, 1e9)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
PROBABILITY = st.floats(0, 1)
FRACTION = st.floats(0, 1, exclude_min=True, exclude_max=True)
COUNTS = st.integers(1, 10**6)
SIZES = COUNTS | st.tuples(COUNTS, COUNTS)
SEEDS = st.integers(0, 2**32 - 1)
TEXT = st.text(min_size=1, max_size=20)
BOOL = st.booleans()
ACTIVATIONS = st.sampled_from([None, "relu", "gelu", "tanh", "sigmoid"])
INITS = st.sampled_from(["torch", "glorot-uniform", "he-uniform", "he-normal"])


def some(**fields):
    """Return fields of which any may be left at their defaults."""
    return st.fixed_dictionaries({}, optional=fields)


def build(spec, optional=None, **required):
    return st.tuples(st.fixed_dictionaries(required), some(**(optional or {}))).map(lambda kv: spec(**kv[0], **kv[1]))


VALIDATION = (
    build(data.FirstImages, first=COUNTS)
    | build(data.RandomFraction, {"seed": SEEDS, "stratify": BOOL}, fraction=FRACTION)
    | st.just(data.OwnValidation(own=True))
)
RESPLIT = build(data.Resplit, {"seed": SEEDS}, train=st.floats(0.1, 0.5), validation=st.floats(0, 0.4))
NORMALIZE = st.sampled_from(["standard", "unit", "symmetric"]) | build(
    data.PixelScale, {"divide_by": ABOVE_ZERO, "mean": NUMBERS, "std": ABOVE_ZERO}
)
DATA = build(
    DataSpec,
    {"classes": st.lists(TEXT, min_size=1).map(tuple), "normalize": NORMALIZE},
    source=TEXT.map("idx:{}".format),
).flatmap(lambda data: st.sampled_from([data]) | VALIDATION.map(lambda v: data.model_copy(update={"validation": v}))
          | RESPLIT.map(lambda r: data.model_copy(update={"resplit": r})))  # fmt: skip
TOML_VALUES = st.recursive(
    BOOL | st.integers(-(2**63), 2**63 - 1) | NUMBERS | TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
LEAF_TRANSFORMS = build(AlbumentationsSpec, {"args": st.dictionaries(TEXT, TOML_VALUES, max_size=3)}, name=TEXT)
TRANSFORMS = LEAF_TRANSFORMS | build(
    AlbumentationsSpec, {"transforms": st.lists(LEAF_TRANSFORMS, max_size=2).map(tuple)}, name=TEXT
)
AUGMENT = build(
    AugmentSpec,
    {
        "rotate": st.floats(0, 180),
        "translate": BELOW_ONE,
        "shift": st.integers(0, 9),
        "flip": PROBABILITY,
        "erase": PROBABILITY,
        "erase_area": st.tuples(FRACTION, FRACTION).map(lambda pair: tuple(sorted(pair))),
        "albumentations": st.lists(TRANSFORMS, max_size=2).map(tuple),
    },
)
L2 = st.floats(0, 1e3)
LAYERS = st.one_of(
    build(
        n.Conv,
        {
            "stride": SIZES,
            "padding": st.sampled_from(["valid", "same"]),
            "activation": ACTIVATIONS,
            "bias": BOOL,
            "l2": L2,
        },
        filters=COUNTS,
        kernel_size=SIZES,
    ),
    build(n.Dense, {"activation": ACTIVATIONS, "bias": BOOL, "l2": L2}, units=COUNTS),
    build(n.MaxPool, {"size": SIZES, "stride": SIZES | st.none()}),
    build(n.AvgPool, {"size": SIZES, "stride": SIZES | st.none()}),
    st.sampled_from([n.GlobalMaxPool(), n.GlobalAvgPool(), n.Flatten(), n.Activate(function="tanh")]),
    build(n.BatchNorm, {"momentum": PROBABILITY, "eps": ABOVE_ZERO, "activation": ACTIVATIONS}),
    build(n.Dropout, rate=BELOW_ONE),
)
MODELS = build(
    families.KernelCnnSpec,
    {"form": st.sampled_from(["plain", "pooled"]), "depth": st.integers(1, 20), "init": INITS},
    kernel_size=COUNTS,
    widths=st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
) | build(families.SequentialSpec, {"init": INITS}, layers=st.lists(LAYERS, min_size=1, max_size=4).map(tuple))


def in_whole_cycles(member):
    """Return a member whose epochs its cycles divide; with cycles, it keeps snapshots, and else it averages."""
    cycles, trainer = getattr(member.schedule, "cycles", None), member.trainer
    changes = {"epochs": trainer.epochs * cycles, "keep": "snapshots"} if cycles else {"swa": 0.25}
    if not cycles and trainer.weight_average is not None:
        return member
    return member.model_copy(update={"trainer": trainer.model_copy(update=changes)})


BETAS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)
OPTIMIZERS = st.one_of(
    build(optimizer.AdamSpec, {"lr": ABOVE_ZERO, "betas": BETAS, "eps": ABOVE_ZERO}),
    build(optimizer.AdamWSpec, {"lr": ABOVE_ZERO, "betas": BETAS, "eps": ABOVE_ZERO, "weight_decay": L2}),
    build(optimizer.SgdSpec, {"lr": ABOVE_ZERO, "nesterov": BOOL, "weight_decay": L2}, momentum=st.floats(0.1, 0.9)),
)
WARMUP = {"warmup": BELOW_ONE, "final": PROBABILITY}
SCHEDULES = st.one_of(
    st.just(schedule.ConstantSchedule()),
    build(schedule.ExponentialSchedule, gamma=st.floats(0, 1, exclude_min=True)),
    build(schedule.CosineSchedule, WARMUP),
    build(schedule.CyclicSchedule, {"final": PROBABILITY, "warmup": st.floats(0, 0.1)}, cycles=st.integers(1, 9)),
    build(schedule.LinearSchedule, WARMUP),
)
TRAINERS = build(
    TrainerSpec,
    {
        "epochs": COUNTS,
        "batch_size": COUNTS,
        "full_batch": BOOL,
        "drop_last": BOOL,
        "seed": SEEDS,
        "label_smoothing": BELOW_ONE,
        "weight_average": st.none() | FRACTION,
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "bagging": st.none() | FRACTION | st.just(1.0),
    },
)
MEMBERS = build(
    MemberSpec,
    {"augment": AUGMENT, "optimizer": OPTIMIZERS},
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,20}\Z"),
    model=MODELS,
    schedule=SCHEDULES,
    trainer=TRAINERS,
).map(in_whole_cycles)
RECIPES = build(
    Recipe,
    {
        "ensemble": build(
            EnsembleSpec,
            {"vote": st.sampled_from(["majority", "soft"]), "tie": st.sampled_from(["probability", "lowest", "first"])},
        ),
        "reference": st.none()
        | build(
            ReferenceSpec,
            {
                "test_accuracy": PROBABILITY,
                "test_recall": st.dictionaries(st.text(max_size=5), PROBABILITY, max_size=3),
            },
            source=TEXT,
        ),
    },
    name=TEXT.filter(lambda text: text not in (".", "..") and not set("/\\\0") & set(text)),
    description=st.from_regex(r"\A([A-Za-z0-9é×]([ -~]{0,20}[!-~])?)?\Z"),
    data=DATA,
    members=st.lists(MEMBERS, min_size=1, max_size=3, unique_by=lambda member: member.name.casefold()).map(tuple),
)


@given(recipe=RECIPES)
@settings(max_examples=60)
def test_any_recipe_is_written_and_read_back_to_the_same_value(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(dump_recipe(recipe).encode())
    again = load_recipe(str(path))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_digest_does_not_depend_on_how_the_toml_is_written():
    one = 'model = { family = "kernel-cnn", kernel_size = 3, widths = [4, 5], form = "pooled" }\n[data]\n'
    one += 'source = "fashion-mnist"\n[trainer]\nepochs = 3\n[optimizer]\nlr = 0.001\n'
    other = """# With a comment, other spacing and order, and a default spelled out.
        [optimizer]
        lr = 1e-3
        name = 'adam'
        [trainer]
        batch_size = 128
        epochs = 0x3
        [model]
        form = "pooled"
        widths = [
            4,
            5,
        ]
        kernel_size = 3
        family = "kernel-cnn"
        [data]
        source = "fashion-mnist"
        """
    assert recipe_digest(load_text(one)) == recipe_digest(load_text(other))


@pytest.mark.parametrize(
    "override",
    [
        "trainer.epochs=11",
        "optimizer.lr=0.0010000001",
        "model.widths=[5]",
        "data.validation={first=1}",
        "augment.flip=0.1",
        "ensemble.tie=first",
        "data.classes=['a']",
    ],
)
def test_digest_changes_with_any_value(override):
    assert recipe_digest(load_text(MINIMAL)) != recipe_digest(load_text(MINIMAL, override))


def test_digest_covers_each_spec_in_order():
    a, b = TrainerSpec(), EnsembleSpec()
    assert len({recipe_digest(a), recipe_digest(b), recipe_digest(a, b), recipe_digest(b, a)}) == 4


def test_values_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_text(MINIMAL).name = "other"


# --- schema -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(json.loads(json.dumps(recipe_schema())))


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipe_follows_the_schema(schema, name):
    schema.validate(tomllib.loads(shipped_recipes()[name].read_text("utf-8")))


@pytest.mark.parametrize("text", [MINIMAL, TWO, COPIES, MINIMAL + "validation = { fraction = 0.1, seed = 3 }\n"])
def test_good_recipe_follows_the_schema(schema, text):
    assert load_text(text)
    schema.validate(tomllib.loads(text))


@given(recipe=RECIPES)
@settings(max_examples=20)
def test_resolved_recipe_follows_the_schema(schema, recipe):
    schema.validate(tomllib.loads(dump_recipe(recipe)))


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + "[trainer]\nepoch = 3\n",
        MINIMAL + "[trainer]\nepochs = 0\n",
        MINIMAL + "[trainer]\nepochs = '3'\n",
        MINIMAL + "[optimizer]\nname = 'adan'\n",
        MINIMAL + "[optimizer]\nlearning_rate = 1.0\n",
        MINIMAL + "[tariner]\n",
        MINIMAL + "[[members]]\nmodel.kernel_size = 3\n",
        MINIMAL + "[[members]]\nname = 'a'\nmodel.kernel_sise = 3\n",
        MINIMAL + "[[members]]\nname = 'a'\ncopies = 0\n",
        MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 0\n",
        MINIMAL + "[trainer]\nkeep = 'snapshot'\n",
        MINIMAL + "[trainer]\nbagging = 2.0\n",
        MINIMAL + "[trainer]\nswa = 1.0\n",
        MINIMAL + "validation = { frist = 3 }\n",
        sequential('{ type = "conv", filters = 3 }'),
        MODEL,
    ],
)
def test_typo_does_not_follow_the_schema(schema, text):
    assert not schema.is_valid(tomllib.loads(text))
    problems_of(text)


# --- weight -------------------------------------------------------------------------------------------------


def test_recipes_load_without_heavy_libraries():
    heavy = ("torch", "torchvision", "albumentations", "sklearn", "matplotlib", "numpy", "PIL")
    code = f"import sys, fmcli.recipe as r; r.load_recipe('quick'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONSAFEPATH": ""},
    )
    assert done.stdout.strip() == "[]"


def test_known_sources_say_their_classes():
    known = KNOWN_SOURCES["fashion-mnist"]
    assert known.input_shape == (1, 28, 28)
    assert len(set(known.class_names)) == 10


# --- what only the whole recipe tells -----------------------------------------------------------------------


def test_setting_the_name_names_the_run_and_not_its_members():
    recipe = load_text(MINIMAL, "name=other")
    assert (recipe.name, [member.name for member in recipe.members]) == ("other", ["m1"])


@pytest.mark.parametrize("name", ["../x", "..", "a/b", ""])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(name):
    assert any("can name a folder" in problem for problem in problems_of(MINIMAL, f'name="{name}"'))


def test_members_whose_names_differ_in_case_alone_are_refused():
    members = '\n[[members]]\nname = "k3"\n[[members]]\nname = "K3"\n'
    assert problems_of(MINIMAL + members) == {"members: two are named 'k3'", "members: two are named 'K3'"}


def test_no_member_is_called_vote():
    assert any("choose another name" in problem for problem in problems_of(MINIMAL + '\n[[members]]\nname = "vote"\n'))


def test_keeping_the_best_epoch_needs_validation_images():
    assert any("needs validation images" in problem for problem in problems_of(MINIMAL, "trainer.keep=best"))
    assert load_text(MINIMAL, "trainer.keep=best", "data.validation.first=5000").members[0].trainer.keep == "best"


def test_snapshots_need_a_cyclic_schedule_and_no_validation_images():
    cyclic = "schedule={ name = 'cyclic', cycles = 5 }"
    [member] = load_text(MINIMAL, "trainer.keep=snapshots", cyclic).members
    assert (member.trainer.keep, member.schedule.cycles) == ("snapshots", 5)
    assert load_text(MINIMAL, cyclic).members[0].trainer.keep == "last"


@pytest.mark.parametrize(
    ("swa", "epochs", "averaged"), [(None, 10, 0), (0.25, 12, 3), (0.3, 10, 3), (0.01, 10, 1), (0.99, 10, 10)]
)
def test_stochastic_weight_averaging_is_over_whole_epochs(swa, epochs, averaged):
    assert TrainerSpec(swa=swa, epochs=epochs).averaged_epochs == averaged


@pytest.mark.parametrize(("bagging", "drawn"), [(None, 999), (1.0, 999), (0.5, 500), (0.1, 100), (1e-9, 1)])
def test_bagging_draws_a_part_of_the_images(bagging, drawn):
    assert TrainerSpec(bagging=bagging).sample_size(999) == drawn


def test_the_schema_explains_what_members_say_of_themselves():
    properties = recipe_schema()["properties"]["members"]["items"]["properties"]
    assert properties["copies"]["description"].startswith("Number of members")
    assert properties["name"]["description"].startswith("Name of the member")


def test_a_validation_set_of_all_training_images_is_refused_before_they_are_read():
    assert any("fewer than the 60000" in problem for problem in problems_of(MINIMAL, "data.validation.first=60000"))


def test_class_names_of_the_recipe_count_in_the_network_check():
    layers = '[model]\nfamily = "sequential"\nlayers = [{ type = "flatten" }, { type = "dense", units = 12 }]\n'
    text = layers + '[data]\nsource = "fashion-mnist"\nclasses = ["a","b","c","d","e","f","g","h","i","j","k","l"]\n'
    assert len(load_text(text).data.classes) == 12


# --- the list of keys ---------------------------------------------------------------------------------------


def keys_by_name(path, choice=""):
    return {
        key.name: key for table in recipe_keys() if (table.path, table.choice) == (path, choice) for key in table.keys
    }


def test_every_key_of_every_table_is_listed():
    tables = {
        'optimizer name = "muon"': optimizer.MuonSpec,
        'schedule name = "one-cycle"': schedule.OneCycleSchedule,
        'model family = "kernel-cnn"': families.KernelCnnSpec,
        'model.layers[] type = "conv"': n.Conv,
        'model.layers[] type = "flatten"': n.Flatten,
        "augment.albumentations[]": AlbumentationsSpec,
        "augment": AugmentSpec,
        "trainer": TrainerSpec,
        "ensemble": EnsembleSpec,
        "reference": ReferenceSpec,
        "search": search.SearchSpec,
        "data": DataSpec,
        "members[]": {"name", "copies"},
        "": {"name"},
    }
    found = {f"{table.path} {table.choice}".strip(): {key.name for key in table.keys} for table in recipe_keys()}
    for name, kind in tables.items():
        fields = kind if isinstance(kind, set) else set(kind.model_fields)
        assert found[name] == fields - {"family", "type"} - ({"name"} if "name = " in name else set()), name


def test_a_listed_default_is_the_one_that_is_taken():
    member = load_text(MINIMAL).members[0]
    for table in ("trainer", "augment"):
        for name, key in keys_by_name(table).items():
            value = getattr(member, table).model_dump(mode="json")[name]
            assert (key.needed, key.default) == (False, value), name
    assert keys_by_name("optimizer", 'name = "sgd"')["lr"].default == 0.1


def test_what_has_no_default_is_needed_but_for_what_means_something_when_left_out():
    network = keys_by_name("model", 'family = "kernel-cnn"')
    assert {name for name, key in network.items() if key.needed} == {"kernel_size", "widths"}
    assert {name for name, key in keys_by_name("data").items() if key.needed} == {"source"}
    assert not any(key.needed for key in keys_by_name("ensemble").values())
    assert not keys_by_name("")["name"].needed
    assert keys_by_name("members[]")["name"].needed


def test_what_a_key_takes_is_said_in_words():
    trainer, conv = keys_by_name("trainer"), keys_by_name("model.layers[]", 'type = "conv"')
    assert trainer["bagging"].takes == "number > 0, ≤ 1"
    assert trainer["keep"].takes == "last | best | retrained | snapshots"
    assert trainer["full_batch"].takes == "true or false"
    assert conv["stride"].takes == "whole number > 0 or [whole number > 0, whole number > 0]"
    assert keys_by_name("data")["validation"].takes == "table"
    assert keys_by_name("search.space.KEY")["choice"].takes == "list of: any value"
