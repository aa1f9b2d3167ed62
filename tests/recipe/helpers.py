"""Recipe texts and functions that several test modules use."""

import tomllib

import pytest

from fmcli.errors import RecipeError
from fmcli.recipe import resolve_recipe
from fmcli.recipe.overrides import apply_overrides

MODEL = 'model = { family = "kernel-cnn", form = "pooled", kernel_size = 3, widths = [4] }\n'
SAME_CASE = "(upper and lower case count as equal)"
MINIMAL = MODEL + '[data]\nsource = "fashion-mnist"\n'


def load_text(text, *overrides):
    return resolve_recipe(apply_overrides(tomllib.loads(text), overrides), name="mine")


def problems_of(text, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_text(text, *overrides)
    return set(caught.value.problems)


def sequential(*layers):
    return f'model = {{ family = "sequential", layers = [{", ".join(layers)}] }}\n[data]\nsource = "fashion-mnist"\n'


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

TWO = (
    MINIMAL
    + '[optimizer]\nlr = 0.5\n[[members]]\nname = "a"\n[[members]]\nname = "b.2"\noptimizer.lr = 0.1\n'
    + "model = { kernel_size = 5 }\n"
)
