"""Imports of the server that `tests/processes.py` forks processes from."""
# ruff: noqa: F401

from contextlib import suppress

import optuna
import pytest

import fmcli.cli.ensemble
import fmcli.cli.reproduce
import fmcli.cli.search
import fmcli.cli.train
import fmcli.training.run
import tests.soak

with suppress(ImportError):  # it is installed only on Linux
    import numba

    numba.njit(lambda number: number)(0)  # prepares the compiler, which takes as long as importing numba
