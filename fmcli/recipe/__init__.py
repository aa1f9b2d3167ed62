"""Recipes: TOML to frozen values and back.

`specs`, `networks` and `training` hold the values, `load` reads, `resolve` checks.
"""

from fmcli.recipe.families import ModelSpec
from fmcli.recipe.keys import recipe_keys
from fmcli.recipe.known import KNOWN_SOURCES, SourceFacts
from fmcli.recipe.load import (
    RecipeText,
    describe,
    dump_recipe,
    dump_table,
    find_recipe,
    load_recipe,
    read_recipe,
    read_text,
    recipe_digest,
    shipped_recipes,
)
from fmcli.recipe.overrides import apply_overrides, set_values, value_at
from fmcli.recipe.resolve import known_facts, resolve_data, resolve_recipe, trial_table
from fmcli.recipe.schema import recipe_schema
from fmcli.recipe.specs import (
    AlbumentationsSpec,
    AugmentSpec,
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    Recipe,
    ReferenceSpec,
    SearchSpec,
)
from fmcli.recipe.training import OptimizerSpec, ScheduleSpec, TrainerSpec

__all__ = [
    "KNOWN_SOURCES",
    "AlbumentationsSpec",
    "AugmentSpec",
    "DataSpec",
    "EnsembleSpec",
    "MemberSpec",
    "ModelSpec",
    "OptimizerSpec",
    "Recipe",
    "RecipeText",
    "ReferenceSpec",
    "ScheduleSpec",
    "SearchSpec",
    "SourceFacts",
    "TrainerSpec",
    "apply_overrides",
    "describe",
    "dump_recipe",
    "dump_table",
    "find_recipe",
    "known_facts",
    "load_recipe",
    "read_recipe",
    "read_text",
    "recipe_digest",
    "recipe_keys",
    "recipe_schema",
    "resolve_data",
    "resolve_recipe",
    "set_values",
    "shipped_recipes",
    "trial_table",
    "value_at",
]
