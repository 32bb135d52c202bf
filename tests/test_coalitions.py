"""Worth of coalitions. Oracles: dense normal laws, composed models of the coalition itself, all orders of sources."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from cdm_lightning.attribution import credit_noise
from cdm_lightning.coalitions import DensityGame, ErrorGame, shares_of, with_nobody
from cdm_lightning.compartment import Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.contenders import backbone_alone
from cdm_lightning.credit_methods import CreditSettings, _posterior, _sampled, credit, positive_shares, shares
from cdm_lightning.denoiser import EDM, SIGMA_MAX
from cdm_lightning.drafts import DraftError
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.public import Public
from cdm_lightning.seeding import generator
from cdm_lightning.shapley import coalitions, leave_one_out, sampled_shapley_values, shapley_values
from tests.conv_backbone import ConvNet

SHAPE = (1, 2, 3)
COUNTS = {"a": 20, "b": 50, "c": 30}
FLOOR = 0.3


def form(seed: int) -> Gaussians:
    """Return one Gaussian with three directions of its own, float64."""
    g = torch.Generator().manual_seed(seed)
    mean = 0.6 * torch.randn(1, 6, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(6, 3, generator=g, dtype=torch.float64))[0][None]
    variance = 0.1 + torch.rand(1, 3, generator=g, dtype=torch.float64)
    return Gaussians(mean.new_zeros(1), mean, basis, variance, mean.new_full((1,), 0.1), SHAPE)


PUBLIC = form(9)


def opened(switch: float, temperature: float = 1.0, names: str = "abc") -> Compartments:
    """Return compartments of Gaussians; with the switch below the floor no network ever runs."""
    calibration = Calibration(torch.ones(1), torch.full((1,), temperature), FLOOR)
    error = DraftError(torch.tensor([20.0]), torch.tensor([0.1, 10.0]), torch.tensor([[0.1, 0.5]]))
    public = Public(PUBLIC, Strength(), error, calibration, switch, 3)
    parts = {name: Compartment(COUNTS.get(name, 10), form(k), form(k)) for k, name in enumerate(names)}
    backbone = ConvNet(image_size=4, channels=1, guided=True)
    backbone.initialize(torch.Generator().manual_seed(0))
    backbone.double().eval()
    return Compartments(backbone, parts, public, True, switch, EDM())


def images(n: int = 4) -> Tensor:
    return 0.5 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def law(own: Gaussians, sigma: float) -> MultivariateNormal:
    eye = torch.eye(6, dtype=torch.float64)
    spread = own.basis[0] @ torch.diag(own.variance[0] - own.rest[0]) @ own.basis[0].T
    return MultivariateNormal(own.mean[0], spread + (float(own.rest) + sigma**2) * eye)


def worth(members: tuple[str, ...], x: Tensor, sigma: float) -> Tensor:
    """Return the log density [image] of the mixture of some sources, densely; of `public` for nobody."""
    if not members:
        return law(PUBLIC, sigma).log_prob(x.flatten(1))
    total = sum(COUNTS[name] for name in members)
    parts = [math.log(COUNTS[n] / total) + law(form("abc".index(n)), sigma).log_prob(x.flatten(1)) for n in members]
    return torch.stack(parts).logsumexp(0)


def named(row: Tensor) -> tuple[str, ...]:
    return tuple(name for name, there in zip("abc", row.tolist(), strict=True) if there)


def mean_worth(members: tuple[str, ...], x_0: Tensor) -> Tensor:
    return torch.stack([worth(members, x_0 + FLOOR * n, FLOOR) for n in credit_noise(x_0, 16, 0)]).mean(0)


def test_nobody_is_public_and_shares_are_renormalised_among_the_members() -> None:
    assert with_nobody(coalitions(2)).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    logit = torch.tensor([0.2, 0.5, 7.0]).log()
    expected = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [2 / 7, 5 / 7, 0]])
    torch.testing.assert_close(shares_of(with_nobody(coalitions(2)), logit), expected)


def test_log_densities_of_coalitions_are_those_of_dense_normal_laws() -> None:
    x_0 = images()
    value = DensityGame.of(opened(0.1), x_0, FLOOR, credit_noise(x_0, 2, 0))(coalitions(3))
    assert value.shape == (8, 2, 4)
    for row, members in zip(value, coalitions(3), strict=True):
        for draw, noise in enumerate(credit_noise(x_0, 2, 0)):
            torch.testing.assert_close(row[draw], worth(named(members), x_0 + FLOOR * noise, FLOOR))


def test_shapley_values_of_the_log_density_are_the_mean_over_all_orders() -> None:
    x_0 = images()
    found = credit(opened(0.1), x_0, CreditSettings("shapley"))
    expected = torch.zeros(3, len(x_0), dtype=torch.float64)
    for order in itertools.permutations("abc"):
        for place, name in enumerate(order):
            before = tuple(sorted(order[:place]))
            expected["abc".index(name)] += mean_worth(tuple(sorted((*before, name))), x_0) - mean_worth(before, x_0)
    torch.testing.assert_close(found.value, expected / 6)
    torch.testing.assert_close(found.value.sum(0), mean_worth(("a", "b", "c"), x_0) - mean_worth((), x_0))


def test_leave_one_out_is_the_weight_that_is_missed() -> None:
    """v(all) - v(all without i) = log(1 - lambda_i) - log(1 - w_i): by Bayes' rule, of each draw."""
    x_0, model = images(), opened(0.1)
    game = DensityGame.of(model, x_0, FLOOR, credit_noise(x_0, 16, 0))
    found = leave_one_out(game, 3)
    prior = torch.tensor(list(COUNTS.values()), dtype=torch.float64) / 100
    for draw, noise in enumerate(credit_noise(x_0, 16, 0)):
        weights = model.composed("posterior").weights(x_0 + FLOOR * noise, torch.full((4,), FLOOR).double())
        torch.testing.assert_close(found[:, draw], (1 - prior).log()[:, None] - (1 - weights).log())
    torch.testing.assert_close(credit(model, x_0, CreditSettings("loo")).value, found.mean(1))


@pytest.mark.parametrize("members", ["a", "bc", "abc"])
def test_the_error_of_a_coalition_is_that_of_its_own_composed_model(members: str) -> None:
    """With networks below the switch, a temperature, and no closed form in common."""
    x_0, model = images().float(), opened(2.0, temperature=3.0)
    forms = {name: part.closed_form.to("cpu", torch.float32) for name, part in model.compartments.items()}
    model.closed_forms.update(forms)
    model.backbone.float()
    own = {name: model[name] for name in members}
    counts = {name: COUNTS[name] for name in members}
    alone = ComposedDenoiser(own, {n: model.evidence()[n] for n in members}, counts, "posterior", 2.0)
    width, expected = math.log(SIGMA_MAX / FLOOR) / 5, torch.zeros(2, 4)
    for number in range(5):
        sigma = FLOOR * math.exp((number + 0.5) * width)
        for draw in range(2):
            x = x_0 + sigma * torch.randn(SHAPE, generator=generator(7, "coalitions", number, draw))
            error = (alone(x, torch.full((4,), sigma)) - x_0).flatten(1).square().sum(1)
            expected[draw] -= width * error / sigma**2
    public = backbone_alone(model, None, "cpu")
    public.closed_forms.update({"public": PUBLIC.to("cpu", torch.float32)})
    game = ErrorGame.of(model, public, x_0, FLOOR, 2, 7, levels=5)
    row = torch.tensor([[name in members for name in "abc"]])
    torch.testing.assert_close(game(row)[0].float(), expected, rtol=1e-4, atol=1e-3)


def test_the_error_of_ideal_denoisers_is_the_log_density_up_to_a_constant() -> None:
    """The pointwise I-MMSE relation: both games give every source the same, within the error of draws and levels."""
    x_0 = images(2)
    draws, model = 40, opened(0.1)
    by_error = ErrorGame.of(model, backbone_alone(model, None, "cpu"), x_0, FLOOR, draws, 0, levels=16)
    by_density = DensityGame.of(model, x_0, FLOOR, credit_noise(x_0, 1000, 0))
    one, other = (shapley_values(game, 3) for game in (by_error, by_density))
    error = torch.hypot(one.std(1) / draws**0.5, other.std(1) / 1000**0.5)
    assert float(((one.mean(1) - other.mean(1)).abs() / error).max()) < 4
    assert float(error.max()) < 0.2 * float(other.mean(1).abs().max())
    assert model.evaluations == 0


def test_posteriors_by_closed_forms_are_bayes_rule() -> None:
    """`gaussians`, `network` with the closed form as network, and `weights` at its lowest levels."""
    x_0, model = images(), opened(0.1)
    joint = []
    for noise in credit_noise(x_0, 16, 0):
        x = x_0 + FLOOR * noise
        joint.append(torch.stack([math.log(COUNTS[name] / 100) + worth((name,), x, FLOOR) for name in "abc"]))
    found = credit(model, x_0, CreditSettings("gaussians"))
    by_draw = torch.stack(joint).softmax(1)
    torch.testing.assert_close(found.shares, by_draw.mean(0))
    torch.testing.assert_close(found.standard_error, by_draw.std(0) / 4)
    torch.testing.assert_close(
        credit(model, x_0, CreditSettings("network")).shares, torch.stack(joint).mean(0).softmax(0)
    )
    along = credit(model, x_0, CreditSettings("weights", steps=4))
    torch.testing.assert_close(along.shares, torch.stack([weight for _, weight in along.trajectory]).mean(0))
    assert [sigma for sigma, _ in along.trajectory][::3] == [80.0, 0.002]


def test_an_endless_switch_is_credited_as_one_at_the_highest_noise_that_is_trained_on() -> None:
    """Above it there is no network to ask."""
    x_0, settings = images(), CreditSettings("network", draws=2)
    with torch.inference_mode():
        endless, highest = (credit(opened(switch), x_0, settings) for switch in (math.inf, SIGMA_MAX))
    assert bool(endless.shares.isfinite().all())
    torch.testing.assert_close(endless.shares, highest.shares, rtol=0, atol=0)


def test_the_interval_of_the_network_is_the_jackknife_over_draws() -> None:
    x_0, model = images(), opened(0.1)
    found = credit(model, x_0, CreditSettings("network", draws=5))
    log = torch.stack(
        [
            torch.stack([math.log(COUNTS[n] / 100) + worth((n,), x_0 + FLOOR * noise, FLOOR) for n in "abc"])
            for noise in credit_noise(x_0, 5, 0)
        ]
    )
    left = torch.stack([torch.cat([log[:k], log[k + 1 :]]).mean(0).softmax(0) for k in range(5)])
    expected = (4 / 5 * (left - left.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(found.standard_error, expected)


def test_more_than_twelve_sources_are_sampled_within_the_stated_error() -> None:
    x_0, names = images(2), "abcdefghijklm"
    model = opened(0.1, names=names)
    found = credit(model, x_0, CreditSettings("shapley", draws=2, permutations=400))
    assert found.permutation_error is not None
    assert (found.standard_error >= found.permutation_error).all()
    many = credit(model, x_0, CreditSettings("shapley", draws=2, permutations=4000, seed=0))
    assert many.permutation_error is not None
    assert float(((found.value - many.value).abs() / found.permutation_error).max()) < 5
    game = DensityGame.of(model, x_0, FLOOR, credit_noise(x_0, 2, 0))
    ends = game(torch.tensor([[False] * 13, [True] * 13])).mean(1)
    torch.testing.assert_close(found.value.sum(0), ends[1] - ends[0])


def test_nats_are_shares_only_where_none_is_negative() -> None:
    value = torch.tensor([[1.0, 4.0, -1.0, 0.0], [3.0, -1.0, -2.0, 0.0]])
    nan = math.nan
    torch.testing.assert_close(
        shares(value), torch.tensor([[0.25, nan, nan, nan], [0.75, nan, nan, nan]]), equal_nan=True
    )
    expected = torch.tensor([[0.25, 1.0, nan, nan], [0.75, 0.0, nan, nan]])
    torch.testing.assert_close(positive_shares(value), expected, equal_nan=True)
    assert credit(opened(0.1), images(), CreditSettings("loo")).shares.isnan().all()


@pytest.mark.parametrize("method", ["weights", "gaussians", "network", "loo", "shapley"])
def test_an_image_is_credited_the_same_alone_and_in_a_batch(method: str) -> None:
    x_0, model = images(), opened(2.0)
    utility = "network" if method in ("loo", "shapley") else "gaussians"
    own = CreditSettings(method, utility, draws=2)  # type: ignore[arg-type]
    together = credit(model, x_0, own).value
    alone = torch.cat([credit(model, x_0[k : k + 1], own).value for k in range(4)], 1)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_settings_out_of_range_are_refused() -> None:
    for settings, said in (
        ({"draws": 1}, "--draws is 1; expected at least 2"),
        ({"permutations": 5}, "--permutations is 5; expected an even number"),
        ({"utility": "network"}, "--utility network is of the methods loo and shapley, not gaussians"),
    ):
        with pytest.raises(BadInput, match=said):
            CreditSettings(**settings)  # type: ignore[arg-type]


def test_the_error_of_a_posterior_is_that_of_its_mean_log_density() -> None:
    """Oracle: the slope of the logistic function at one half, times the standard error of the mean."""
    apart = 0.01 * torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_density = torch.stack([apart, torch.zeros_like(apart)], 1)
    found = _posterior(log_density, torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found.standard_error[0], 0.25 * apart.std(0) / 4, rtol=1e-3, atol=0)


def test_a_source_that_adds_nothing_has_a_share_of_zero() -> None:
    assert shares(torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])).nan_to_num(-1).tolist() == [
        [0.75, -1],
        [0.25, -1],
        [0, -1],
    ]


def test_sampled_values_are_of_the_mean_game_with_the_permutations_asked_for() -> None:
    table = torch.randn(16, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def game(members: Tensor) -> Tensor:
        return table[(members.long() * 2 ** torch.arange(4)).sum(1)]

    value, error = _sampled(game, 4, CreditSettings("shapley", permutations=40))
    expected = sampled_shapley_values(lambda members: game(members).mean(1), 4, 20, generator(0, "permutations"))
    torch.testing.assert_close(value.mean(1), expected.value)
    torch.testing.assert_close(error, expected.standard_error)
