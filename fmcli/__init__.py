"""fmcli: train, combine and read ensembles of small-image classifiers from the shell."""

__version__ = "0.1.0"
