"""Numbers that the table `[trainer]` determines."""

import pytest

from fmcli.recipe import TrainerSpec


@pytest.mark.parametrize(
    ("swa", "epochs", "averaged"), [(None, 10, 0), (0.25, 12, 3), (0.3, 10, 3), (0.01, 10, 1), (0.99, 10, 10)]
)
def test_swa_averages_whole_epochs(swa, epochs, averaged):
    assert TrainerSpec(swa=swa, epochs=epochs).averaged_epochs == averaged


@pytest.mark.parametrize(("bagging", "drawn"), [(None, 999), (1.0, 999), (0.5, 500), (0.1, 100), (1e-9, 1)])
def test_bagging_draws_a_fraction_of_the_images(bagging, drawn):
    assert TrainerSpec(bagging=bagging).sample_size(999) == drawn
