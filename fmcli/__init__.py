"""fmcli: train small-image classifiers and combine them into voting ensembles."""

__version__ = "0.1.0"
