"""Plan a search: read its recipe, and derive the recipe of each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcli.errors import RecipeError, printable
from fmcli.recipe import Recipe, RecipeText, read_recipe, resolve_recipe, trial_table
from fmcli.recipe.search import SearchSpec

DEFAULT_FOLDER = Path("checkpoints/search")


@dataclass(frozen=True, slots=True)
class Search:
    """A planned search.

    Args:
        text: The recipe as read.
        recipe: The resolved recipe.
        spec: The `[search]` table, with the requested number of trials.
        folder: Folder for the journal and the trials.
    """

    text: RecipeText
    recipe: Recipe
    spec: SearchSpec
    folder: Path

    def resolve_trial(self, values: Mapping[str, Any], training: int) -> Recipe:
        """Return the recipe of one run of a trial.

        Args:
            values: Values by path in the recipe.
            training: Number of the run in the trial, from 0. Each run has a different seed.

        Raises:
            RecipeError: The values contradict each other, or the network is impossible.
        """
        try:
            table = trial_table(self.text.table, values)
        except KeyError as error:  # one value removed the table or layer of another value
            raise RecipeError(str(error.args[0])) from None
        recipe = resolve_recipe(table, name=self.text.name)
        members = []
        for member in recipe.members:
            trainer = member.trainer
            settings = {
                "epochs": self.spec.epochs or trainer.epochs,
                "seed": trainer.seed + training,
                "keep": "best" if trainer.swa is None else "last",
                "patience": None,
            }
            members.append(member.model_copy(update={"trainer": trainer.model_copy(update=settings)}))
        return recipe.model_copy(update={"members": tuple(members)})


def open_search(
    name: str, folder: Path | None = None, *, overrides: Sequence[str] = (), trials: int | None = None
) -> Search:
    """Read and check the recipe of a search.

    Args:
        name: Name or path of the recipe.
        folder: Output folder. Default: `checkpoints/search/RECIPE`.
        overrides: `key=value` strings.
        trials: Number of trials. Default: the number in the recipe.

    Raises:
        RecipeError: The recipe is invalid, or has no `[search]` table or no validation images.
    """
    text = read_recipe(name, overrides)
    recipe = resolve_recipe(text.table, name=text.name, description=text.description)
    if recipe.search is None:
        raise RecipeError(
            f"recipe {printable(name)} has no [search] table",
            hint="add a [search] table; fmcli recipe show ams-search prints an example",
        )
    if not recipe.data.validates:
        raise RecipeError(
            f"recipe {printable(name)} has no validation images, which a search needs to score trials",
            hint="add validation = { first = 5000 } to [data]",
        )
    if recipe.search.pruner != "none" and len(recipe.members) > 1:
        raise RecipeError(
            f"search.pruner: got {recipe.search.pruner!r}, which needs a recipe with one member",
            hint='set pruner = "none", or search a recipe with one member',
        )
    spec = recipe.search if trials is None else recipe.search.model_copy(update={"trials": trials})
    return Search(text, recipe, spec, folder or DEFAULT_FOLDER / recipe.name)
