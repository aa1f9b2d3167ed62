"""Recipes: read TOML into frozen, checked values, and write these values as TOML.

There is one module per table: `data`, `augment`, `families` (the table `[model]`), `optimizer`, `schedule`, `trainer`
and `search`; `recipe` has the other tables. `load` reads a file, `overrides` changes values, and `resolve` checks the
result.
"""

from fmcli.choices import SourceFacts
from fmcli.recipe.data import DataSpec, known_facts
from fmcli.recipe.load import (
    RecipeText,
    dump_recipe,
    dump_table,
    find_recipe,
    load_recipe,
    read_recipe,
    read_text,
    recipe_description,
    recipe_digest,
    shipped_recipes,
)
from fmcli.recipe.overrides import value_at
from fmcli.recipe.recipe import EnsembleSpec, MemberSpec, Recipe, ReferenceSpec
from fmcli.recipe.resolve import resolve_data, resolve_recipe, trial_table
from fmcli.recipe.schema import recipe_keys, recipe_schema
from fmcli.recipe.trainer import TrainerSpec

__all__ = [
    "DataSpec",
    "EnsembleSpec",
    "MemberSpec",
    "Recipe",
    "RecipeText",
    "ReferenceSpec",
    "SourceFacts",
    "TrainerSpec",
    "dump_recipe",
    "dump_table",
    "find_recipe",
    "known_facts",
    "load_recipe",
    "read_recipe",
    "read_text",
    "recipe_description",
    "recipe_digest",
    "recipe_keys",
    "recipe_schema",
    "resolve_data",
    "resolve_recipe",
    "shipped_recipes",
    "trial_table",
    "value_at",
]
