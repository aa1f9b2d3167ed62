"""Experiments of many runs: reproducing published systems and searching hyperparameters."""
