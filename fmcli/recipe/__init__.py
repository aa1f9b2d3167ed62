"""Recipes: TOML to frozen values and back. `specs` holds the values, `load` reads, `problems` words errors."""

from fmcli.recipe.known import KNOWN_SOURCES, SourceFacts
from fmcli.recipe.load import (
    apply_overrides,
    describe,
    dump_recipe,
    find_recipe,
    known_facts,
    load_recipe,
    read_text,
    recipe_digest,
    resolve_recipe,
    shipped_recipes,
)
from fmcli.recipe.networks import (
    ModelSpec,
)
from fmcli.recipe.schema import recipe_schema
from fmcli.recipe.specs import (
    AlbumentationsSpec,
    AugmentSpec,
    DataSpec,
    EnsembleSpec,
    MemberSpec,
    OptimizerSpec,
    Recipe,
    ReferenceSpec,
    ScheduleSpec,
    TrainerSpec,
)

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
    "ReferenceSpec",
    "ScheduleSpec",
    "SourceFacts",
    "TrainerSpec",
    "apply_overrides",
    "describe",
    "dump_recipe",
    "find_recipe",
    "known_facts",
    "load_recipe",
    "read_text",
    "recipe_digest",
    "recipe_schema",
    "resolve_recipe",
    "shipped_recipes",
]
