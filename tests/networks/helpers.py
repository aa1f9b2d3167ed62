"""Networks for several test modules."""

from fmcli.networks.build import build_model
from fmcli.recipe.tracing import trace_layers


def build_network(layers, input_shape, n_classes, **options):
    return build_model(trace_layers(layers, input_shape, n_classes), **options)
