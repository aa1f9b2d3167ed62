"""Writing recipes as TOML and reading them again; digests."""

import pytest
from hypothesis import given, settings

from fmcli.recipe import (
    EnsembleSpec,
    TrainerSpec,
    dump_recipe,
    load_recipe,
    recipe_digest,
)
from tests.recipe.helpers import MINIMAL, load_text
from tests.recipe.strategies import RECIPES


@given(recipe=RECIPES)
@settings(max_examples=60)
def test_any_recipe_survives_a_round_trip(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(dump_recipe(recipe).encode())
    again = load_recipe(str(path))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_digest_does_not_depend_on_formatting():
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
        f"data.classes={list('abcdefghij')}",
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
