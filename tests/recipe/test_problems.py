"""Problems in recipes: every one is reported with its path."""

import json

import pytest

from fmcli.errors import RecipeError
from fmcli.networks.tracing import trace_recipe
from fmcli.recipe import SourceFacts
from tests.recipe.helpers import MINIMAL, MODEL, SAME_CASE, load_text, problems_of, sequential

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


def test_all_problems_are_reported_together():
    assert problems_of(BAD) == {
        "colour: unknown key; choose from: name, data, model, augment, optimizer, schedule, trainer, ensemble, "
        "members, reference, search",
        "name: got 7; expected text that is valid as the name of a folder",
        "data.source: got 'fashion-mnits'; did you mean 'fashion-mnist'?",
        "data.validation: got {'frist': 5000}; expected one of the keys first, fraction, own",
        "data.normalize: got 'unitt'; did you mean 'unit'? or a table",
        "augment.rotate: got 'ten'; expected a number",
        "augment.flip: got 1.5; expected a number of at most 1.0",
        "augment.erase_area[1]: missing",
        "model.form: got 'pool'; did you mean 'pooled'?",
        "model.widths: got []; expected at least 1 value",
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
        f"members: 2 members are named 'fine' {SAME_CASE}",
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
        ("", {"data.source: missing", "model: missing"}),
        (MINIMAL + "[trainer]\nseed = 4294967296\n",
         {"trainer.seed: got 4294967296; expected a number below 4294967296"}),
        ("trainer.seed = -1\n",
         {"data.source: missing", "model: missing", "trainer.seed: got -1; expected a number of at least 0"}),
        ("data = 3\n" + MODEL, {"data: got 3; expected a table"}),
        (MINIMAL + "[optimizer]\nlr = 1\n[[optimizer.lr2]]\n", {"optimizer.lr2: unknown key; did you mean 'lr'?"}),
        (MINIMAL + "[optimizer]\nlr = inf\n", {"optimizer.lr: got inf; expected a finite number"}),
        (MINIMAL + "normalize = { mean = nan }\n", {"data.normalize.mean: got nan; expected a finite number"}),
        (MINIMAL + "validation = { fraction = 0.1, sed = 3 }\n",
         {"data.validation.sed: unknown key; did you mean 'seed'?"}),
        (MINIMAL + "resplit = { train = 0.5, validation = 0.1, seed = -1 }\n",
         {"data.resplit.seed: got -1; expected a number of at least 0"}),
        (MINIMAL + "resplit = { train = 0.8, validation = 0.2 }\n",
         {"data.resplit: train + validation must be below 1, so that test images remain; got 1"}),
        (MINIMAL + "resplit = { train = 0.5, validation = 0.2 }\nvalidation = { own = true }\n",
         {"data: give either validation or resplit, not both"}),
        (MINIMAL + "classes = ['cat', 'dog', 'cat']\n",
         {"data.classes: 2 classes are named 'cat'; expected different names"}),
        (sequential('{ type = "conv", filters = 3, kernel_size = [3, "3"] }'),
         {"model.layers[0].kernel_size[1]: got '3'; expected a whole number"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = [5, 3]"),
         {"model: kernel_size must be one number, or a list of 1, one per width; got a list of 2"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = []"),
         {"model: kernel_size must be one number, or a list of 1, one per width; got a list of 0"}),
        (MINIMAL.replace("kernel_size = 3", "kernel_size = [0]"),
         {"model.kernel_size[0]: got 0; expected a number above 0"}),
        (MINIMAL + "[optimizer]\nname = 'sgd'\nnesterov = true\n",
         {"optimizer: nesterov = true needs a momentum above 0"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\n", {"schedule.cycles: missing"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 0\n", {"schedule.cycles: got 0; expected a number above 0"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 5\nwarmup = 0.2\n",
         {"schedule: warmup must end in the first of 5 cycles: expected a number below 0.2, got 0.2"}),
        (MINIMAL + "[schedule]\nname = 'cyclic'\ncycles = 4\n",
         {"members.m1.trainer.epochs: got 10; expected a multiple of schedule.cycles = 4"}),
        (MINIMAL + "[trainer]\nkeep = 'snapshots'\n",
         {"members.m1.trainer.keep: got 'snapshots', which needs a cyclic schedule; "
          'set name = "cyclic" and cycles = … in [schedule]'}),
        (MINIMAL + "validation = { first = 9 }\n[schedule]\nname = 'cyclic'\ncycles = 5\n[trainer]\n"
         "keep = 'snapshots'\npatience = 3\n",
         {"trainer: keep = 'snapshots' needs all cycles, so it cannot be combined with patience"}),
        (MINIMAL + "[trainer]\nkeep = 'snapshot'\n", {"trainer.keep: got 'snapshot'; did you mean 'snapshots'?"}),
        (MINIMAL + "[trainer]\nbagging = 0\n", {"trainer.bagging: got 0; expected a number above 0.0"}),
        (MINIMAL + "[trainer]\nbagging = 1.5\n", {"trainer.bagging: got 1.5; expected a number of at most 1.0"}),
        (MINIMAL + "[trainer]\nswa = 1\n", {"trainer.swa: got 1; expected a number below 1.0"}),
        (MINIMAL + "[trainer]\nswa = 0.0\n", {"trainer.swa: got 0.0; expected a number above 0.0"}),
        (MINIMAL + "[trainer]\nswa = 0.5\nweight_average = 0.9\n",
         {"trainer: swa cannot be combined with weight_average"}),
        (MINIMAL + "validation = { first = 9 }\n[trainer]\nswa = 0.5\nkeep = 'best'\npatience = 0\n",
         {"trainer: swa cannot be combined with keep = 'best' or patience"}),
        (MINIMAL + "[trainer]\nweight_average = 0.9\n[[members]]\nname = 'a'\ntrainer.swa = 0.5\n",
         {"members.a.trainer: swa cannot be combined with weight_average"}),
        (MINIMAL + "[[members]]\nname = 'Snapshot-2'\n",
         {"members.Snapshot-2.name: got 'Snapshot-2', which is reserved for the snapshots of a member; "
          "choose another name"}),
        (MINIMAL + "[[members]]\nname = 'snapshot'\ncopies = 2\n",
         {"members.snapshot.name: got 'snapshot', which is reserved for the snapshots of a member; "
          "choose another name"}),
        (MINIMAL + "[[members]]\nname = 'Last-Good'\n",
         {"members.Last-Good.name: got 'Last-Good', which is reserved for the weights before a divergence; "
          "choose another name"}),
        (MINIMAL + "[augment]\nerase_area = [0.5, 0.1]\n",
         {"augment: erase_area must be [smallest, largest]; got [0.5, 0.1]"}),
        (MINIMAL + "[[members]]\n", {"members[0].name: missing"}),
        (MINIMAL + "[[members]]\nname = ['a']\n", {"members[0].name: got ['a']; expected text in quotes"}),
        ("members = []\n" + MINIMAL, {"members: expected at least one [[members]] table, each with a name"}),
        (MINIMAL.replace("kernel-cnn", "kernel-cn"),
         {"model: got 'kernel-cn' for 'family'; did you mean 'kernel-cnn'?"}),
        (MINIMAL.replace('family = "kernel-cnn", ', ""), {"model: missing key 'family'"}),
    ],
)  # fmt: skip
def test_problems_have_a_path(text, problems):
    assert problems_of(text) == problems


@pytest.mark.parametrize("source", ["", "idx:", "idx", "csv:here", "fashion_mnist", ":"])
def test_unknown_source_is_refused(source):
    [problem] = problems_of(MINIMAL.replace("fashion-mnist", source))
    assert problem.startswith("data.source: ")


SHARED = "trainer.epochs: got 'x'; expected a whole number"


@pytest.mark.parametrize(
    ("member", "problems"),
    [
        # Wrong in the shared table, or missing in both: reported once for all members.
        ("", {"model.widths: missing", SHARED}),
        # Wrong in the member's own table.
        ("trainer = { epochs = 'y' }\nmodel.widths = [1]",
         {"members.a.trainer.epochs: got 'y'; expected a whole number", SHARED}),
        # A member of another family uses no values of the shared table.
        ("model = { family = 'sequential' }",
         {"members.a.model.layers: missing", "model.widths: missing", SHARED}),
        # A value instead of a table.
        ("trainer = 0\nmodel.widths = [1]",
         {"members.a.trainer: got 0; expected a table", SHARED}),
    ],
)  # fmt: skip
def test_path_of_a_problem_is_the_table_to_correct(member, problems):
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


def test_shared_value_that_must_be_a_table_is_reported():
    text = "trainer = 5\n" + MINIMAL + "[[members]]\nname = 'a'\ntrainer.epochs = 3\n"
    assert problems_of(text) == {"trainer: got 5; expected a table"}


def test_control_characters_in_a_recipe_do_not_reach_the_terminal():
    with pytest.raises(RecipeError) as caught:
        load_text(MINIMAL + '"\\u001b[31m" = 3\nclasses = "\\u001b[31m"\n')
    assert "\x1b" not in str(caught.value)


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
        "members.too-large.model.layers[4]: a 11×11 kernel is larger than the 8×8 feature map; "
        "use a smaller kernel, fewer layers, or padding = 'same'",
        "members.far-too-large.model.layers[0]: a 30×30 kernel is larger than the 28×28 feature map; "
        "use a smaller kernel, fewer layers, or padding = 'same'",
    }


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (
            ['{ type = "dense", units = 10 }'],
            "layers[0]: dense needs flat input, got 1×28×28; add a flatten layer before it",
        ),
        (
            ['{ type = "flatten" }', '{ type = "conv", filters = 3, kernel_size = 3 }'],
            "layers[1]: conv needs an image, got 784; move it before the flatten layer",
        ),
        (
            ['{ type = "max-pool", size = [29, 2] }'],
            "layers[0]: a 29×2 window is larger than the 28×28 feature map; "
            "use a smaller window, fewer layers, or padding = 'same'",
        ),
        (
            ['{ type = "flatten" }', '{ type = "dense", units = 9 }'],
            "layers: the last layer returns 9; expected 10, one logit per class",
        ),
        (
            ['{ type = "batch-norm" }'],
            "layers: the last layer returns 1×28×28; expected 10, one logit per class",
        ),
    ],
)
def test_impossible_layers_are_named(layers, problem):
    assert problems_of(sequential(*layers)) == {f"members.m1.model.{problem}"}


def test_networks_are_checked_with_the_actual_image_size():
    recipe = load_text(MINIMAL.replace("fashion-mnist", "idx:here").replace('form = "pooled"', 'form = "plain"'))
    assert set(trace_recipe(recipe, SourceFacts((1, 3, 3), ("a", "b")))) == {"m1"}
    with pytest.raises(RecipeError, match=r"members\.m1\.model\.layers\[0\]: a 3×3 kernel is larger than the 2×3"):
        trace_recipe(recipe, SourceFacts((1, 2, 3), ("a", "b")))


def test_override_of_the_name_renames_only_the_run():
    recipe = load_text(MINIMAL, "name=other")
    assert (recipe.name, [member.name for member in recipe.members]) == ("other", ["m1"])


@pytest.mark.parametrize("name", ["../x", "..", "a/b", ""])
def test_name_outside_the_folder_of_runs_is_refused(name):
    assert any("the name of a folder" in problem for problem in problems_of(MINIMAL, f'name="{name}"'))


def test_member_names_that_differ_only_in_case_are_refused():
    members = '\n[[members]]\nname = "k3"\n[[members]]\nname = "K3"\n'
    assert problems_of(MINIMAL + members) == {f"members: 2 members are named 'k3' {SAME_CASE}"}


def test_member_name_vote_is_refused():
    assert any("choose another name" in problem for problem in problems_of(MINIMAL + '\n[[members]]\nname = "vote"\n'))


def test_keep_best_needs_validation_images():
    assert any("needs validation images" in problem for problem in problems_of(MINIMAL, "trainer.keep=best"))
    assert load_text(MINIMAL, "trainer.keep=best", "data.validation.first=5000").members[0].trainer.keep == "best"


def test_snapshots_need_a_cyclic_schedule_but_no_validation_images():
    cyclic = "schedule={ name = 'cyclic', cycles = 5 }"
    [member] = load_text(MINIMAL, "trainer.keep=snapshots", cyclic).members
    assert (member.trainer.keep, member.schedule.cycles) == ("snapshots", 5)
    assert load_text(MINIMAL, cyclic).members[0].trainer.keep == "last"


def test_validation_set_of_all_training_images_is_refused():
    assert any("fewer than the 60000" in problem for problem in problems_of(MINIMAL, "data.validation.first=60000"))


@pytest.mark.parametrize("names", ["abcdefghijkl", "abc"])
def test_wrong_number_of_classes_of_a_built_in_source_is_refused(names):
    problems = problems_of(MINIMAL, f"data.classes={json.dumps(list(names))}")
    assert problems == {f"data.classes: got {len(names)} names; expected 10, one per class"}
