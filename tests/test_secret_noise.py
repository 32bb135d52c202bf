"""Noise of a secret: normal, the same for who knows it, another for every release, and nothing of a seed."""

import math
from pathlib import Path

import pytest
import torch

from cdm_lightning.errors import BadInput
from cdm_lightning.secret_noise import SecretNoise, read_secret, snapped

SECRET = b"0123456789abcdef0123456789abcdef"
RELEASE = {"source": "alice", "images": "5f4a", "epsilon": 8.0}


def test_the_numbers_are_standard_normal() -> None:
    drawn = SecretNoise(SECRET, RELEASE).normal(200_001)
    assert drawn.shape == (200_001,)
    assert abs(float(drawn.mean())) < 4 / math.sqrt(200_000)
    assert float(drawn.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 200_000))
    for level in (-3.0, -1.0, 0.0, 0.5, 2.0):
        below = math.erfc(-level / math.sqrt(2)) / 2
        deviation = math.sqrt(below * (1 - below) / 200_000)
        assert float((drawn < level).double().mean()) == pytest.approx(below, abs=4 * deviation)
    assert 3.9 < float(drawn.abs().max()) < 6.0
    halves = drawn[:100_000], drawn[100_001:]
    assert abs(float((halves[0] * halves[1]).mean())) < 4 / math.sqrt(100_000)


def test_who_knows_the_secret_draws_the_same() -> None:
    one, two = (SecretNoise(SECRET, RELEASE) for _ in range(2))
    assert torch.equal(one.normal(5), two.normal(5))
    assert torch.equal(one.normal(7), two.normal(7))


@pytest.mark.parametrize("other", [{"images": "5f4b"}, {"epsilon": 4.0}, {"source": "bob"}])
def test_another_release_has_other_noise(other: dict[str, str | float]) -> None:
    """Else the difference of two releases under one secret would be the bare difference of their images."""
    one, two = SecretNoise(SECRET, RELEASE).normal(1000), SecretNoise(SECRET, RELEASE | other).normal(1000)
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.15


def test_no_number_is_drawn_twice() -> None:
    noise = SecretNoise(SECRET, RELEASE)
    assert len(torch.cat([noise.normal(500), noise.normal(500)]).unique()) == 1000


def test_a_fresh_secret_is_new_each_time_and_needs_no_file() -> None:
    assert read_secret(None) != read_secret(None)
    assert len(read_secret(None)) == 32


def test_the_global_state_and_seeds_play_no_part() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = SecretNoise(SECRET, RELEASE).normal(10)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(SecretNoise(SECRET, RELEASE).normal(10), one)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password\n")
    with pytest.raises(BadInput, match="has 8 bytes; expected at least 32"):
        read_secret(str(tmp_path / "secret"))
    with pytest.raises(BadInput, match="cannot be read"):
        read_secret(str(tmp_path / "none"))
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    assert read_secret(str(tmp_path / "secret")) == SECRET


def test_values_are_on_the_grid_and_hardly_moved() -> None:
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = snapped(values, 0.5)
    assert torch.equal(found / (0.5 * 2.0**-20), (found / (0.5 * 2.0**-20)).round())
    assert float((found - values).abs().max()) <= 0.5 * 2.0**-21
