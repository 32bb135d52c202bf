"""The learning rate. Oracle: by hand."""

import pytest

from cdm_lightning.schedule import learning_rate_factor


def test_the_rate_rises_stays_and_falls_to_a_twentieth() -> None:
    """Oracle: by hand, of 1000 steps: 50 up, 450 constant, 500 down, never below a twentieth."""
    found = {step: learning_rate_factor(step, 1000) for step in (0, 24, 49, 50, 500, 750, 900, 975, 999)}
    expected = {0: 0.02, 24: 0.5, 49: 1.0, 50: 1.0, 500: 1.0, 750: 0.5, 900: 0.2, 975: 0.05, 999: 0.05}
    assert found == pytest.approx(expected)
