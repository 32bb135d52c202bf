"""Membership inference. Oracles: loops over pairs, scipy, examples by hand, Gaussians, what a closed form never saw."""

import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from cdm_lightning.gaussians import Gaussians
from cdm_lightning.membership import (
    LIKELIHOOD,
    attack,
    auc,
    auc_chance,
    auc_interval,
    auc_variance,
    density_statistics,
    loss_statistics,
    losses,
    threshold_at,
)


def numbers(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 5), (40, 60)])
def test_the_area_counts_pairs(m: int, n: int) -> None:
    members, others = numbers(m, 0, 0.3).mul(3).round(), numbers(n, 1).mul(3).round()
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in members.tolist() for b in others.tolist()]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_the_chance_is_that_of_mann_and_whitney() -> None:
    members, others = numbers(30, 0, 0.4), numbers(50, 1)
    expected = mannwhitneyu(members, others, alternative="greater", method="asymptotic", use_continuity=False).pvalue
    assert auc_chance(auc(members, others), 30, 50) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("area", [0.3, 0.5, 0.9])
def test_the_ends_are_as_far_as_their_own_standard_error(area: float) -> None:
    found = auc_interval(area, 30, 50)
    for end in (found.low, found.high):
        assert abs(end - area) == pytest.approx(1.959964 * math.sqrt(auc_variance(end, 30, 50)), rel=1e-6)
    assert found.low < area < found.high


def test_all_pairs_in_order_are_no_certainty() -> None:
    found = auc_interval(1.0, 10, 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.7 < found.low < 0.9
    mirrored = auc_interval(0.0, 10, 10)
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - found.low))


@pytest.mark.parametrize(("m", "n", "area"), [(20, 20, 0.5), (20, 20, 0.9), (100, 10, 0.8)])
def test_the_interval_holds_the_area_as_often_as_it_says(m: int, n: int, area: float) -> None:
    shift = NormalDist().inv_cdf(area) * math.sqrt(2)
    found = [auc_interval(auc(numbers(m, 2 * k, shift), numbers(n, 2 * k + 1)), m, n) for k in range(300)]
    assert 0.91 <= sum(one.low <= area <= one.high for one in found) / 300 <= 0.99


def test_the_threshold_lets_one_in_a_hundred_pass() -> None:
    others = torch.arange(200.0)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert threshold_at(others, 0.01) == 197.0  # 198 and 199 pass
    assert threshold_at(others, 0.0) == 199.0
    assert threshold_at(others[:50], 0.01) == float(others[:50].max())


def test_an_attack_by_hand() -> None:
    others = torch.zeros(400)
    members = torch.tensor([1.0, -1.0]).repeat_interleave(200)
    found = attack({"one": members}, {"one": others}, seed=0)
    above = found.auc.value  # a member above zero beats all others, one below beats none
    assert found.true_positives.value == pytest.approx(above)
    assert above == pytest.approx(0.5, abs=0.1)
    assert found.false_positives.value == 0.0
    assert (found.members, found.others) == (200, 200)


def test_the_best_statistic_is_chosen() -> None:
    members = {"noise": numbers(100, 0), "signal": numbers(100, 1, 5.0)}
    others = {"noise": numbers(80, 2), "signal": numbers(80, 3)}
    found = attack(members, others, seed=0)
    assert found.statistic == "signal"
    assert found.auc.value > 0.99
    assert found.true_positives.value > 0.9
    assert found.chance < 1e-9


def test_nothing_is_judged_on_what_it_was_chosen_on() -> None:
    """Of a hundred statistics that say nothing the best one looks good on the images that it was chosen on alone."""
    names = [str(k) for k in range(100)]
    areas, best = [], []
    for seed in range(60):
        members, others = ({name: numbers(40, 1000 * seed + 2 * int(name) + i) for name in names} for i in range(2))
        areas.append(attack(members, others, seed).auc.value)
        best.append(max(auc(members[name], others[name]) for name in names))
    assert sum(best) / 60 > 0.6
    assert sum(areas) / 60 == pytest.approx(0.5, abs=0.03)


def test_losses_are_those_of_a_loop() -> None:
    x_0, noise = (torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(n)) for n in (5, 3))
    found = losses(lambda x, sigma: x / (1 + sigma.square()[:, None, None, None]), x_0, noise, (2.0, 0.5))
    for i, clean in enumerate(x_0):
        for j, sigma in enumerate((2.0, 0.5)):
            slow = [((clean + sigma * draw) / (1 + sigma**2) - clean).square().sum() for draw in noise]
            assert float(found[i, j]) == pytest.approx(float(sum(slow)) / 3, rel=1e-5)


def test_the_integral_of_a_constant_loss() -> None:
    sigmas = tuple(float(s) for s in torch.logspace(1, -1, 400, dtype=torch.float64))
    found = loss_statistics(torch.full((1, 400), 3.0, dtype=torch.float64), sigmas)
    integral = 3 * (1 / 0.1**2 - 1 / 10**2) / 2  # of 3 / sigma^2 over log sigma, from 0.1 to 10
    assert -float(found[LIKELIHOOD]) == pytest.approx(integral, rel=1e-4)
    assert float(found["loss at 10"]) == -3.0


def test_the_likelihood_statistic_orders_images_as_the_density_does() -> None:
    """For a Gaussian around 0 whose loss does not depend on the direction, up to the noise of the draws."""
    x_0, noise = (torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n)) for n in (20, 400))
    sigmas = (20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
    found = losses(lambda x, sigma: x / (1 + sigma.square()[:, None, None, None]), x_0, noise, sigmas)
    density = -x_0.flatten(1).square().sum(1)
    ranks = [one.argsort().argsort().double() for one in (loss_statistics(found, sigmas)[LIKELIHOOD], density)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.97


def law(n: int, seed: int) -> Tensor:
    """Return images of one law in 36 dimensions."""
    g = torch.Generator().manual_seed(7)
    basis = torch.randn(36, 36, generator=g) / 36**0.5
    own = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 36, generator=own) @ basis * 0.5).reshape(n, 1, 6, 6)


def attacked(form: Gaussians, members: Tensor, others: Tensor) -> tuple[float, float, float, str]:
    noise = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    sides = [
        loss_statistics(losses(form.denoise, x_0, noise)) | density_statistics([form], [1.0], x_0)
        for x_0 in (members, others)
    ]
    found = attack(sides[0], sides[1], seed=0)
    return found.auc.low, found.auc.value, found.auc.high, found.statistic


def test_members_of_a_closed_form_of_few_images_are_found() -> None:
    members = law(40, 0)
    low, area, _, _ = attacked(Gaussians.fit(members, seed=0, rank=30), members, law(400, 1))
    assert low > 0.8
    assert area > 0.95


def test_images_of_the_same_law_that_were_not_used_are_not() -> None:
    form = Gaussians.fit(law(40, 0), seed=0, rank=30)
    low, _, high, _ = attacked(form, law(300, 2), law(400, 1))
    assert low < 0.5 < high


def test_members_of_a_closed_form_of_many_images_are_hard_to_find() -> None:
    members = law(5000, 3)
    low, area, _, _ = attacked(Gaussians.fit(members, seed=0, rank=30, clusters=1), members[:400], law(400, 1))
    assert low < 0.5
    assert area < 0.58


def test_densities_are_those_of_the_mixture() -> None:
    forms = [Gaussians.fit(law(60, k), seed=0, rank=5) for k in range(2)]
    x_0 = law(10, 9)
    found = density_statistics(forms, [0.75, 0.25], x_0)
    together = forms[0].mixed_with(forms[1], 0.25).log_density(x_0, torch.full((10,), 0.5))
    assert found["log density at 0.5"].tolist() == pytest.approx(together.tolist(), rel=1e-4)
    assert density_statistics([], [], x_0) == {}


def test_a_threshold_does_not_know_the_images_that_it_is_judged_on() -> None:
    """Of 51 images of one law the last one is above the 50 others once in 51 times; a threshold of theirs never."""

    def numbers(n: int, seed: int) -> torch.Tensor:
        return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    alarms = [
        attack({"one": numbers(8, 2 * k)}, {"one": numbers(100, 2 * k + 1)}, k).false_positives.value
        for k in range(300)
    ]
    assert sum(alarms) / 300 == pytest.approx(1 / 51, abs=0.006)
