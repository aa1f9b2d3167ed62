"""What a search is about: its recipe, and the recipe of each of its trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcli.errors import RecipeError, printable
from fmcli.recipe import Recipe, RecipeText, read_recipe, resolve_recipe, trial_table
from fmcli.recipe.search import SearchSpec

SEARCHES = Path("checkpoints/search")


@dataclass(frozen=True, slots=True)
class Search:
    """What a search is about.

    Args:
        text: The recipe, as read.
        recipe: The same, resolved.
        spec: Its `[search]` table.
        folder: Where each trial's trainings go.
    """

    text: RecipeText
    recipe: Recipe
    spec: SearchSpec
    folder: Path

    def resolve_trial(self, values: Mapping[str, Any], training: int) -> Recipe:
        """Return the recipe of one training of a trial.

        Raises:
            RecipeError: The values make an impossible network together.
        """
        try:
            table = trial_table(self.text.table, values)
        except KeyError as error:  # one value took away what another is for
            raise RecipeError(str(error.args[0])) from None
        recipe = resolve_recipe(table, name=self.text.name)
        members = []
        for member in recipe.members:
            trainer = member.trainer
            during = {
                "epochs": self.spec.epochs or trainer.epochs,
                "seed": trainer.seed + training,
                "keep": "best" if trainer.swa is None else "last",
                "patience": None,
            }
            members.append(member.model_copy(update={"trainer": trainer.model_copy(update=during)}))
        return recipe.model_copy(update={"members": tuple(members)})


def open_search(
    name: str, folder: Path | None = None, *, overrides: Sequence[str] = (), trials: int | None = None
) -> Search:
    """Read a recipe that is to be searched.

    Args:
        name: A recipe's name or path.
        folder: Where the search goes; by default `checkpoints/search/RECIPE`.
        overrides: `key=value` strings.
        trials: How many sets of values to try, instead of the recipe's number.

    Raises:
        RecipeError: It has a problem, or no `[search]` table, or no validation images to score on.
    """
    text = read_recipe(name, overrides)
    recipe = resolve_recipe(text.table, name=text.name, description=text.description)
    if recipe.search is None:
        raise RecipeError(
            f"recipe {printable(name)} has no [search] table",
            hint="fmcli recipe show ams-search has one to start from",
        )
    if not recipe.data.validates:
        raise RecipeError(
            f"recipe {printable(name)} sets no validation images aside, and a search is scored on them",
            hint="add validation = { first = 5000 } to [data]",
        )
    if recipe.search.pruner != "none" and len(recipe.members) > 1:
        raise RecipeError(
            f"search.pruner: got {recipe.search.pruner!r}, which needs a recipe of one member",
            hint='pruner = "none", or a recipe of one member',
        )
    spec = recipe.search if trials is None else recipe.search.model_copy(update={"trials": trials})
    return Search(text, recipe, spec, folder or SEARCHES / recipe.name)
