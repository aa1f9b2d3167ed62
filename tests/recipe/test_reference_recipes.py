"""Recipes of published systems, compared with the reports and with parameter counts calculated by hand."""

import pytest

from fmcli.choices import BUILT_IN_SOURCES
from fmcli.experiments.reproduce import published_systems
from fmcli.recipe import load_recipe, shipped_recipes
from fmcli.recipe.tracing import trace_members

# Weights + biases of each layer, in order: kernel sides, channels in, filters; or inputs, units.
DENSE_ON_PIXELS = {
    "mell-fc": [784 * 300 + 300, 300 * 100 + 100, 100 * 100 + 100, 100 * 50 + 50, 50 * 20 + 20, 20 * 10 + 10],
    "dalvi-1h": [784 * 100 + 100, 100 * 10 + 10],
    "dalvi-mlp": [784 * 64 + 64, 64 * 64 + 64, 64 * 64 + 64, 64 * 10 + 10],
    "becker-fc": [784 * 300 + 300, 300 * 32 + 32, 32 * 16 + 16, 16 * 10 + 10],
}
CONVOLUTIONAL = {
    # 28 "same" 28, valid 26, pooled 13
    "mell-cnn": [16 * 6 + 6, 9 * 6 * 32 + 32, 13 * 13 * 32 * 128 + 128, 128 * 10 + 10],
    # 28, 14, 7, 4
    "dalvi-cnn": [9 * 64 + 64, 9 * 64 * 128 + 128, 9 * 128 * 256 + 256, 4 * 4 * 256 * 256 + 256, 256 * 10 + 10],
    # 26, pooled 13
    "roy-1": [9 * 32 + 32, 13 * 13 * 32 * 128 + 128, 128 * 10 + 10],
    # 26, pooled 13, stride 2: 7, pooled 3
    "roy-2": [
        9 * 32 + 32, 9 * 32 * 64 + 64, 3 * 3 * 64 * 128 + 128, 128 * 256 + 256, 256 * 128 + 128, 128 * 10 + 10
    ],
    # 26, pooled 13, stride 2: 7, pooled 3, stride 2: 2, pooled 1
    "roy-3": [
        9 * 64 + 64, 9 * 64 * 128 + 128, 9 * 128 * 64 + 64,
        64 * 128 + 128, 128 * 256 + 256, 256 * 256 + 256, 256 * 128 + 128, 128 * 10 + 10,
    ],
    # 26, 24, pooled 12, 10, 8, pooled 4
    "ams-baseline": [
        9 * 16 + 16, 9 * 16 * 16 + 16, 9 * 16 * 32 + 32, 9 * 32 * 32 + 32, 4 * 4 * 32 * 128 + 128, 128 * 10 + 10
    ],
    "ams-tuned": [
        9 * 64 + 64, 9 * 64 * 64 + 64, 9 * 64 * 128 + 128, 9 * 128 * 32 + 32, 4 * 4 * 32 * 80 + 80, 80 * 10 + 10
    ],
    # 28, pooled 14, 14, pooled 7
    "becker-cnn": [9 * 32 + 32, 9 * 32 * 16 + 16, 7 * 7 * 16 * 32 + 32, 32 * 10 + 10],
}  # fmt: skip
COUNTS = {name: sum(layers) for name, layers in (DENSE_ON_PIXELS | CONVOLUTIONAL).items()}
COUNTS |= {"dalvi-1h-sound": COUNTS["dalvi-1h"], "dalvi-mlp-sound": COUNTS["dalvi-mlp"]}
COUNTS |= {"roy-3-sound": COUNTS["roy-3"], "becker-fc-unscaled": COUNTS["becker-fc"]}
COUNTS |= {"ams-search": COUNTS["ams-baseline"]}

SYSTEMS = {*DENSE_ON_PIXELS, *CONVOLUTIONAL, "kernel-vote"}
KERNEL_VOTE = {"m3": 1_124_180, "m5": 1_128_180, "m7": 2_291_972}

# Epochs, batch, optimizer, learning rate, images to validate on.
SETTINGS = {
    "mell-fc": (12, 32, "sgd", 0.1, 5000),
    "mell-cnn": (20, 32, "adam", 1e-4, 5000),
    "dalvi-1h": (100, None, "sgd", 0.1, 7000),
    "dalvi-mlp": (100, None, "adam", 1e-3, 7000),
    "dalvi-cnn": (25, 10, "adam", 3e-4, 7000),
    "roy-1": (10, 512, "adam", 1e-3, 12000),
    "roy-2": (20, 512, "adam", 1e-3, 12000),
    "roy-3": (50, 512, "adam", 1e-3, 12000),
    "ams-baseline": (20, 32, "adam", 1e-3, 12000),
    "ams-tuned": (40, 32, "adam", 2.312e-3, 12000),
    "becker-fc": (23, 32, "adam", 1e-4, 5000),
    "becker-cnn": (10, 32, "adam", 1e-3, 5000),
    "kernel-vote": (150, 120, "adam", 1e-3, 5000),
}
L2 = {"mell-fc": 1e-5, "mell-cnn": 1e-4, "becker-fc": 1e-4, "becker-cnn": 1e-4}


def parameters_of(name: str) -> dict[str, int]:
    traces, problems = trace_members(load_recipe(name).members, BUILT_IN_SOURCES["fashion-mnist"])
    assert not problems
    return {member: sum(trace.parameters for trace in layers) for member, layers in traces.items()}


def test_all_thirteen_published_systems_are_shipped():
    assert len(SYSTEMS) == 13
    assert set(published_systems()) >= SYSTEMS


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_has_a_description(name):
    recipe = load_recipe(name)
    assert recipe.description.endswith(("%", "."))
    assert recipe.data.source == "fashion-mnist"


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_match_counts_calculated_by_hand(name):
    assert parameters_of(name) == {"m1": COUNTS[name]}


def test_parameter_counts_match_published_ones():
    assert COUNTS["ams-baseline"] == 83_322
    assert parameters_of("kernel-vote") == KERNEL_VOTE
    for size in (3, 5, 7):
        same = parameters_of(f"same-kernel-{size}")
        assert list(same.values()) == [KERNEL_VOTE[f"m{size}"]] * 3


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_match_the_reports(name):
    recipe = load_recipe(name)
    epochs, batch_size, optimizer, lr, n_validation = SETTINGS[name]
    for member in recipe.members:
        trainer = member.trainer
        assert trainer.epochs == epochs
        assert (None if trainer.full_batch else trainer.batch_size) == batch_size
        assert (member.optimizer.name, member.optimizer.lr) == (optimizer, lr)
    data = recipe.data
    if data.resplit is not None:
        assert round(70_000 * data.resplit.validation) == n_validation
        assert round(70_000 * data.resplit.train) == 49_000
    else:
        fraction = getattr(data.validation, "fraction", None)
        assert getattr(data.validation, "first", round(60_000 * (fraction or 0))) == n_validation


@pytest.mark.parametrize("name", sorted(SYSTEMS - {"kernel-vote"}))
def test_framework_defaults_of_the_reports(name):
    recipe = load_recipe(name)
    [member] = recipe.members
    keras = not name.startswith("dalvi")  # the published figures need PyTorch's initial weights
    assert member.model.init == ("glorot-uniform" if keras else "torch")
    assert getattr(member.optimizer, "eps", 1e-7) == (1e-8 if name in ("dalvi-mlp", "dalvi-cnn") else 1e-7)
    assert {getattr(layer, "l2", 0.0) for layer in member.model.layers if layer.type == "dense"} == {L2.get(name, 0.0)}
    assert {layer.l2 for layer in member.model.layers if layer.type == "conv"} <= {0.0}


@pytest.mark.parametrize(
    ("name", "mean_recall"),
    [
        ("mell-fc", 0.8760),
        ("mell-cnn", 0.9134),
        ("becker-fc", 0.86),
        ("becker-fc-unscaled", 0.86),
        ("becker-cnn", 0.907),
    ],
)
def test_mean_of_published_recalls(name, mean_recall):
    reference = load_recipe(name).reference
    assert tuple(reference.test_recall) == BUILT_IN_SOURCES["fashion-mnist"].class_names
    # Classes are balanced, so the mean recall is the accuracy. In two reports they differ: another training run.
    assert sum(reference.test_recall.values()) / 10 == pytest.approx(mean_recall)
    assert (reference.test_accuracy == pytest.approx(mean_recall)) == (name not in ("mell-fc", "becker-cnn"))


def test_variants_differ_only_in_the_stated_tables():
    def table(name):
        recipe = load_recipe(name).model_dump(exclude={"name", "description", "reference"})
        [member] = recipe["members"]
        return recipe["data"], member["model"], member["optimizer"], member["trainer"]

    for name, other, same in (
        ("dalvi-1h", "dalvi-1h-sound", (0, 1, 2)),
        ("dalvi-mlp", "dalvi-mlp-sound", (0, 1, 2)),
        ("roy-3", "roy-3-sound", (0, 1, 2)),
        ("becker-fc", "becker-fc-unscaled", (1, 2, 3)),
        ("ams-baseline", "ams-search", (0, 1, 2)),
    ):
        first, second = table(name), table(other)
        assert tuple(index for index in range(4) if first[index] == second[index]) == same


# Dropout rates in order.
DROPOUT = {
    "mell-fc": [0.1, 0.1],
    "mell-cnn": [0.3],
    "roy-1": [],
    "roy-2": [0.25, 0.25],
    "roy-3": [0.25, 0.5, 0.25, 0.1],
    "ams-baseline": [0.5, 0.3, 0.2],
    "ams-tuned": [0.25, 0.25, 0.15],
    "becker-fc": [0.1, 0.1],
    "becker-cnn": [0.2, 0.2],
    "dalvi-cnn": [],
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_and_activations_match_the_reports(name):
    layers = load_recipe(name).members[0].model.layers
    assert [layer.rate for layer in layers if layer.type == "dropout"] == DROPOUT[name]
    learning = [layer for layer in layers if layer.type in ("conv", "dense")]
    assert {layer.activation for layer in learning[:-1]} == {"relu"}
    assert learning[-1].activation is None


def test_splits_and_scales_match_the_reports():
    assert {load_recipe(name).data.validation.seed for name in ("roy-1", "roy-2", "roy-3")} == {2020}
    assert {load_recipe(name).data.normalize.divide_by for name in ("dalvi-1h", "dalvi-mlp", "dalvi-cnn")} == {256}
    assert load_recipe("becker-fc-unscaled").data.normalize_test.divide_by == 1
    assert load_recipe("kernel-vote").data.normalize == "symmetric"
    assert {load_recipe(name).data.normalize for name in ("mell-fc", "roy-1", "ams-tuned", "becker-cnn")} == {"unit"}


def test_early_stopping_matches_the_reports():
    [roy] = load_recipe("roy-3").members
    assert (roy.trainer.monitor, roy.trainer.patience, roy.trainer.keep) == ("loss", 0, "last")
    [tuned] = load_recipe("ams-tuned").members
    assert (tuned.trainer.monitor, tuned.trainer.keep) == ("accuracy", "retrained")


@pytest.mark.parametrize("name", ["kernel-vote", "same-kernel-3", "same-kernel-5", "same-kernel-7"])
def test_kernel_vote_matches_the_paper(name):
    for member in load_recipe(name).members:
        assert (member.augment.rotate, member.augment.translate) == (20, 0.2)
        assert (member.schedule.name, member.schedule.gamma) == ("exponential", 0.98)
        assert member.trainer.weight_average == 0.999
        assert member.model.form == "plain"


def test_search_space_matches_the_report():
    search = load_recipe("ams-search").search
    assert (search.trials, search.trainings, search.epochs, search.sampler) == (20, 2, 10, "random")
    choices = {key: space.choice for key, space in search.space.items() if hasattr(space, "choice")}
    rest = {key: space for key, space in search.space.items() if key not in choices}
    ranges = {key: (space.low, space.high, space.step, space.log) for key, space in rest.items()}
    assert choices == {
        **{f"model.layers[{index}].filters": (16, 32, 64) for index in (0, 1)},
        **{f"model.layers[{index}].filters": (32, 64, 128) for index in (4, 5)},
        **{f"model.layers[{index}].activation": ("relu", "sigmoid") for index in (1, 4, 5)},
    }
    assert ranges == {
        **{f"model.layers[{index}].rate": (0.0, 0.5, 0.05, False) for index in (3, 7, 10)},
        "model.layers[9].units": (16, 128, 16, False),
        "optimizer.lr": (1e-4, 1e-2, None, True),
    }
    layers = load_recipe("ams-search").members[0].model.layers
    kinds = {"filters": "conv", "activation": "conv", "rate": "dropout", "units": "dense"}
    for key in search.space:
        if key.startswith("model."):
            index, name = key.removeprefix("model.layers[").split("].")
            assert layers[int(index)].type == kinds[name]
