"""The JSON Schema and the list of keys."""

import json
import tomllib

import jsonschema
import pytest
from hypothesis import given, settings

from fmcli.recipe import (
    DataSpec,
    EnsembleSpec,
    ReferenceSpec,
    TrainerSpec,
    dump_recipe,
    families,
    optimizer,
    recipe_keys,
    recipe_schema,
    schedule,
    search,
    shipped_recipes,
)
from fmcli.recipe import layers as n
from fmcli.recipe.augment import AlbumentationsSpec, AugmentSpec
from tests.recipe.helpers import COPIES, MINIMAL, MODEL, TWO, load_text, problems_of, sequential
from tests.recipe.strategies import RECIPES


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


def test_schema_describes_name_and_copies_of_members():
    properties = recipe_schema()["properties"]["members"]["items"]["properties"]
    assert properties["copies"]["description"].startswith("Number of members")
    assert properties["name"]["description"].startswith("Name of the member")


def keys_by_name(path, choice=""):
    return {
        key.name: key for table in recipe_keys() if (table.path, table.choice) == (path, choice) for key in table.keys
    }


def test_every_key_of_every_table_is_listed():
    tables = {
        'optimizer name = "muon"': optimizer.MuonSpec,
        'schedule name = "one-cycle"': schedule.OneCycleSchedule,
        'model family = "kernel-cnn"': families.KernelCnnSpec,
        'model family = "kernel-resnet"': families.KernelResnetSpec,
        'model.layers[] type = "conv"': n.Conv,
        'model.layers[] type = "flatten"': n.Flatten,
        'model.layers[] type = "residual"': n.Residual,
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


def test_listed_defaults_are_the_actual_defaults():
    member = load_text(MINIMAL).members[0]
    for table in ("trainer", "augment"):
        for name, key in keys_by_name(table).items():
            spec = getattr(member, table)
            value = spec.model_dump(mode="json").get(name, getattr(spec, name))
            assert (key.needed, key.default) == (False, value), name
    assert keys_by_name("optimizer", 'name = "sgd"')["lr"].default == 0.1


def test_keys_without_a_default_are_needed_unless_a_missing_key_has_a_meaning():
    network = keys_by_name("model", 'family = "kernel-cnn"')
    assert {name for name, key in network.items() if key.needed} == {"kernel_size", "widths"}
    assert {name for name, key in keys_by_name("data").items() if key.needed} == {"source"}
    assert not any(key.needed for key in keys_by_name("ensemble").values())
    assert not keys_by_name("")["name"].needed
    assert keys_by_name("members[]")["name"].needed


def test_allowed_values_are_shown_in_words():
    trainer, conv = keys_by_name("trainer"), keys_by_name("model.layers[]", 'type = "conv"')
    assert trainer["bagging"].takes == "number > 0 and ≤ 1"
    assert trainer["keep"].takes == "last | best | retrained | snapshots"
    assert trainer["full_batch"].takes == "true or false"
    assert conv["stride"].takes == "whole number > 0 or [whole number > 0, whole number > 0]"
    assert keys_by_name("data")["validation"].takes == "table"
    assert keys_by_name("search.space.KEY")["choice"].takes == "list of: any value"


def test_every_key_has_a_description():
    assert not [(table.path, key.name) for table in recipe_keys() for key in table.keys if not key.meaning]
