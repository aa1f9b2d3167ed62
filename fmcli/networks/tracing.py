"""Trace networks: the shapes, parameters and multiply-adds of all their layers."""

from fmcli.errors import RecipeError, Remedy, printable
from fmcli.recipe import Recipe, SourceFacts
from fmcli.recipe.families import ModelSpec
from fmcli.recipe.families.torchvision import TorchvisionSpec
from fmcli.recipe.layers import Backbone
from fmcli.recipe.tracing import LayerTrace, Shape, trace_layers, trace_members


def trace_network(model: ModelSpec, input_shape: Shape, n_classes: int) -> tuple[LayerTrace, ...]:
    """Trace a network.

    Args:
        model: A `[model]` table.
        input_shape: (C, H, W).
        n_classes: Number of logits.

    Returns:
        One trace per layer.

    Raises:
        RecipeError: The network is impossible for this input.
    """
    return trace_layers(model.expand(input_shape, n_classes), input_shape, n_classes, _measure_backbone)


def trace_recipe(recipe: Recipe, source: SourceFacts) -> dict[str, tuple[LayerTrace, ...]]:
    """Trace the network of every member of a recipe.

    Args:
        recipe: The recipe.
        source: Image shape and classes of the data.

    Returns:
        The traces of each member by name.

    Raises:
        RecipeError: At least one network is impossible, or its file of initial weights does not fit. The error lists
            the problem of each such member.
    """
    traces, problems = trace_members(recipe.members, source, _measure_and_check)
    if problems:
        raise RecipeError(
            f"recipe {printable(recipe.name)} does not fit {printable(recipe.data.source)}:",
            problems=problems,
            remedies=[Remedy("summary", "quick")] if any(".layers" in problem for problem in problems) else [],
        )
    return traces


def check_names(recipe: Recipe) -> None:
    """Check the names of networks in torchvision, if the shape of the images is not known.

    Raises:
        RecipeError: There is no such network.
    """
    problems = []
    for member in recipe.members:
        if isinstance(member.model, TorchvisionSpec):
            from fmcli.networks.torchvision_networks import check_name  # loads torch

            try:
                check_name(member.model.name)
            except ValueError as error:
                problems.append(f"members.{member.name}.model.name: {error}")
    if problems:
        raise RecipeError(f"recipe {printable(recipe.name)} has a problem:", problems=problems)


def _measure_and_check(layer: Backbone, input_shape: Shape, n_classes: int) -> tuple[int, int]:
    from fmcli.networks.backbone_weights import check_weights  # loads torch

    costs = _measure_backbone(layer, input_shape, n_classes)
    check_weights(layer, input_shape)
    return costs


def _measure_backbone(layer: Backbone, input_shape: Shape, n_classes: int) -> tuple[int, int]:
    from fmcli.networks.backbone import measure_backbone  # loads torch

    return measure_backbone(layer, input_shape, n_classes)
