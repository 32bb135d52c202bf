"""Composition. Oracles: ideal denoisers of finite data sets, a loop, and samples drawn from the mixture itself."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.composition import ComposedDenoiser, mixture_weights
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.sampling import Method, karras_sigmas, sample
from cdm_lightning.strategy import Strategy

SHAPE = (2, 1, 1)
SIGMAS = [0.01, 0.1, 0.5, 2.0, 10.0, 80.0]
LOGS = st.floats(-50, 50)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Points:
    """A finite data set: ideal evidence and denoiser, by a softmax over its points."""

    points: Tensor
    evaluated: list[int] = field(default_factory=list)

    def _log_normals(self, x: Tensor, sigma: Tensor) -> Tensor:
        square = (x[:, None] - self.points[None]).square().flatten(2).sum(2)
        constant = self.points[0].numel() * (2 * math.pi * sigma.square()).log()
        return -0.5 * (square / sigma.square()[:, None] + constant[:, None])

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return self._log_normals(x, sigma).logsumexp(1) - math.log(len(self.points))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluated.append(len(x))
        share = self._log_normals(x, sigma).softmax(1)
        return torch.einsum("bk,k...->b...", share, self.points)


def data_sets(scale: float = 1.0) -> dict[str, Points]:
    sizes = {"a": 3, "b": 7, "c": 2}
    return {s: Points(scale * torch.randn(n, 1, 2, 2, generator=generator(n)).double()) for s, n in sizes.items()}


def compose(parts: dict[str, Points], strategy: Strategy = "posterior") -> ComposedDenoiser:
    n = {source: len(part.points) for source, part in parts.items()}
    return ComposedDenoiser(parts, parts, {source: n[source] / sum(n.values()) for source in parts}, strategy)


def around(parts: dict[str, Points], sigma: float) -> tuple[Tensor, Tensor]:
    x_0 = torch.cat([part.points for part in parts.values()])
    x = x_0 + sigma * torch.randn(x_0.shape, generator=generator(8), dtype=torch.float64)
    return x, torch.full((len(x),), sigma, dtype=torch.float64)


def naive(parts: dict[str, Points], weights: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Return sum_i w_i D_i, one pair after the other."""
    total = torch.zeros_like(x)
    for i, part in enumerate(parts.values()):
        for k in range(len(x)):
            total[k] += weights[i, k] * part(x[k : k + 1], sigma[k : k + 1])[0]
    return total


@pytest.mark.parametrize("sigma", SIGMAS)
def test_composed_ideal_denoisers_are_the_ideal_denoiser_of_the_union(sigma: float) -> None:
    parts = data_sets()
    x, level = around(parts, sigma)
    union = Points(torch.cat([part.points for part in parts.values()]))
    torch.testing.assert_close(compose(parts)(x, level), union(x, level), rtol=0, atol=1e-10)


def test_every_image_is_composed_at_its_own_level() -> None:
    parts = data_sets()
    x, _ = around(parts, 0.3)
    level = torch.logspace(-2, 1.9, len(x), dtype=torch.float64)
    union = Points(torch.cat([part.points for part in parts.values()]))
    torch.testing.assert_close(compose(parts)(x, level), union(x, level), rtol=0, atol=1e-10)


def test_prior_is_scaled_to_one_and_moves_the_weights() -> None:
    parts = data_sets()
    x, level = around(parts, 2.0)
    prior = {"c": 30.0, "a": 10.0, "b": 60.0}  # another order than the denoisers'
    composed = ComposedDenoiser(parts, parts, prior, "posterior")
    shares = zip((0.1, 0.6, 0.3), parts.values(), strict=True)
    expected = torch.stack([share * part.log_density(x, level).exp() for share, part in shares])
    torch.testing.assert_close(composed.weights(x, level), expected / expected.sum(0), rtol=0, atol=1e-12)


class ByClass(Points):
    """Evidence that knows the label."""

    def log_density(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x)) if label is None else label.double() * len(self.points)


def test_labels_reach_the_evidence() -> None:
    evidence = {"a": ByClass(torch.zeros(1, *SHAPE)), "b": ByClass(torch.zeros(3, *SHAPE))}
    composed = ComposedDenoiser(dict(evidence), evidence, {"a": 0.5, "b": 0.5}, "posterior")
    weights = composed.weights(torch.zeros(2, *SHAPE), torch.ones(2), torch.tensor([0, 1]))
    expected = torch.tensor([[0.5, 1 / (1 + math.exp(2))], [0.5, 1 / (1 + math.exp(-2))]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


@st.composite
def logs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    sources, batch = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    evidence = draw(st.lists(st.lists(LOGS, min_size=batch, max_size=batch), min_size=sources, max_size=sources))
    prior = draw(st.lists(LOGS, min_size=sources, max_size=sources))
    return torch.tensor(evidence, dtype=torch.float64), torch.tensor(prior, dtype=torch.float64)


@given(logs())
@settings(deadline=None, derandomize=True)
def test_weights_are_bayes_rule(drawn: tuple[Tensor, Tensor]) -> None:
    evidence, prior = drawn
    joint = evidence.exp() * prior.exp()[:, None]
    weights = mixture_weights(evidence, prior)
    torch.testing.assert_close(weights, joint / joint.sum(0), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]), rtol=0, atol=1e-12)


@given(logs(), st.floats(-1e3, 1e3), st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
@settings(deadline=None, derandomize=True)
def test_weights_do_not_feel_a_constant_common_to_all_sources(
    drawn: tuple[Tensor, Tensor], on_prior: float, on_image: list[float]
) -> None:
    evidence, prior = drawn
    moved = evidence + torch.tensor(on_image, dtype=torch.float64)[: evidence.shape[1]]
    shifted = mixture_weights(moved, prior + on_prior)
    torch.testing.assert_close(shifted, mixture_weights(evidence, prior), rtol=0, atol=1e-11)


@given(logs(), st.data())
@settings(deadline=None, derandomize=True)
def test_a_prior_of_zero_leaves_a_source_out(drawn: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    evidence, prior = (torch.cat([part, part[:1] + 1]) for part in drawn)  # at least two sources
    gone = data.draw(st.integers(0, len(prior) - 1))
    kept = [i for i in range(len(prior)) if i != gone]
    without = prior.clone()
    without[gone] = -math.inf
    weights = mixture_weights(evidence, without)
    assert (weights[gone] == 0).all()
    torch.testing.assert_close(weights[kept], mixture_weights(evidence[kept], prior[kept]), rtol=1e-12, atol=0)


def test_weights_survive_evidence_far_beyond_the_range_of_exp() -> None:
    weights = mixture_weights(torch.tensor([[-5e4, 3e5], [-5e4, -3e5]]), torch.tensor([0.5, 0.5]).log())
    assert weights.tolist() == [[0.5, 1.0], [0.5, 0.0]]


def test_uniform_is_the_average() -> None:
    parts = data_sets()
    x, level = around(parts, 0.7)
    expected = (parts["a"](x, level) + parts["b"](x, level) + parts["c"](x, level)) / 3
    torch.testing.assert_close(compose(parts, "uniform")(x, level), expected, rtol=0, atol=1e-14)


def test_negligible_pairs_are_not_evaluated_and_not_missed() -> None:
    parts = data_sets(scale=20.0)
    composed = compose(parts)
    x, level = around(parts, 0.1)
    expected = naive(parts, composed.weights(x, level), x, level)
    for part in parts.values():
        part.evaluated.clear()
    torch.testing.assert_close(composed(x, level), expected, rtol=0, atol=1e-10)
    assert [sum(part.evaluated) for part in parts.values()] == [3, 7, 2]  # every image by its own source alone


class Rows(Mapping[str, Points]):
    """The same callables, which can also evaluate many pairs at once."""

    def __init__(self, parts: dict[str, Points]) -> None:
        self.parts, self.calls = parts, 0

    def __getitem__(self, source: str) -> Points:
        return self.parts[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def rows(self, x: Tensor, sigma: Tensor, source: Tensor) -> Tensor:
        self.calls += 1
        parts = list(self.parts.values())
        pairs = zip(x, sigma, source.tolist(), strict=True)
        return torch.stack([parts[i](one[None], level[None])[0] for one, level, i in pairs])


def test_rows_of_one_batch_equal_the_loop_over_callables() -> None:
    parts = data_sets()
    x, _ = around(parts, 0.7)
    level = torch.linspace(0.3, 3.0, len(x), dtype=torch.float64)
    source = torch.arange(len(x)) % 3
    looped = compose(parts)
    together = Rows(parts)
    at_once = ComposedDenoiser(together, parts, dict(zip(parts, looped.prior.tolist(), strict=True)), "posterior")
    torch.testing.assert_close(at_once.rows(x, level, source), looped.rows(x, level, source), rtol=0, atol=1e-13)
    torch.testing.assert_close(at_once(x, level), looped(x, level), rtol=0, atol=1e-13)
    torch.testing.assert_close(looped(x, level), naive(parts, looped.weights(x, level), x, level), rtol=0, atol=1e-11)
    assert together.calls == 2


class Finishing(Rows):
    """Denoisers behind one network that would finish the mixed draft."""

    obstacle: str | None = None

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x + sigma[:, None, None, None]


class Trained(Finishing):
    obstacle = "one of them is trained"


def test_draft_is_one_pass() -> None:
    parts = data_sets()
    x, level = around(parts, 0.7)
    composed = ComposedDenoiser(Finishing(parts), parts, {"a": 0.25, "b": 0.5, "c": 0.25}, "draft")
    torch.testing.assert_close(composed(x, level), x + 0.7, rtol=0, atol=1e-13)


class Negative(Gaussians):
    """A law whose denoiser nothing else has."""

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return -x


@pytest.mark.parametrize("strategy", ["posterior", "routed"])
def test_a_known_mixture_is_taken_at_and_above_the_switch_alone(strategy: Strategy) -> None:
    parts = data_sets()
    prior = {"a": 0.25, "b": 0.5, "c": 0.25}
    negative = Negative.fit(torch.rand(9, *SHAPE), seed=0)
    known = ComposedDenoiser(parts, parts, prior, strategy, 0.7, closed_form=negative)
    composed = ComposedDenoiser(parts, parts, prior, strategy, 0.7)
    for sigma, taken in ((0.69, False), (0.7, True), (3.0, True)):
        x, level = around(parts, sigma)
        assert torch.equal(known(x, level), -x if taken else composed(x, level))
    uniform = ComposedDenoiser(parts, parts, prior, "uniform", 0.7, closed_form=negative)
    assert not torch.equal(uniform(x, level), -x)


@pytest.mark.parametrize("kind", [dict, Rows, Trained])
def test_draft_is_refused_where_no_network_can_finish(
    kind: Callable[[dict[str, Points]], Mapping[str, Points]],
) -> None:
    parts = data_sets()
    why = "one of them is trained" if kind is Trained else "these denoisers have no drafts"
    with pytest.raises(BadInput, match=f"strategy 'draft' finishes one draft for all sources, but {why}; choose"):
        ComposedDenoiser(kind(parts), parts, {"a": 1.0, "b": 1.0, "c": 1.0}, "draft")


def test_an_unknown_strategy_is_refused_with_a_proposal() -> None:
    with pytest.raises(BadInput, match="unknown strategy 'route'.*'routed'.*did you mean"):
        compose(data_sets(), "route")  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "d": 1.0}])
def test_mappings_of_different_sources_are_refused(prior: dict[str, float]) -> None:
    parts = data_sets()
    with pytest.raises(ValueError, match="sources differ"):
        ComposedDenoiser(parts, parts, prior, "posterior")
    with pytest.raises(ValueError, match="sources differ"):
        ComposedDenoiser(parts, {"a": parts["a"]}, {"a": 1.0, "b": 1.0, "c": 1.0}, "posterior")


def test_an_empty_composition_is_refused() -> None:
    with pytest.raises(ValueError, match="sources differ"):
        ComposedDenoiser({}, {}, {})


@pytest.mark.parametrize("share", [0.0, -0.5])
def test_a_prior_that_is_not_positive_is_refused(share: float) -> None:
    parts = data_sets()
    with pytest.raises(ValueError, match="every prior must be positive, but got"):
        ComposedDenoiser(parts, parts, {"a": 0.5, "b": share, "c": 0.5}, "posterior")


# Three Gaussian sources in the plane, one of two clusters.
PRIOR = {"left": 0.5, "right": 0.3, "pair": 0.2}


def gaussian(means: list[list[float]], share: list[float], variance: float, rest: float, angle: float) -> Gaussians:
    basis = torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64).expand(len(means), 2, 1)
    count = len(means)
    log_share = torch.tensor(share, dtype=torch.float64).log()
    mean = torch.tensor(means, dtype=torch.float64)
    spread = torch.full((count, 1), variance, dtype=torch.float64), torch.full((count,), rest, dtype=torch.float64)
    return Gaussians(log_share, mean, basis, *spread, SHAPE)


PLANE = {
    "left": gaussian([[-1.5, 0.0]], [1.0], 0.5, 0.05, 0.6),
    "right": gaussian([[1.5, 0.5]], [1.0], 0.3, 0.1, 2.0),
    "pair": gaussian([[0.0, 2.0], [0.5, -2.0]], [0.7, 0.3], 0.1, 0.02, 0.0),
}


def plane(strategy: Strategy, sources: list[str] | None = None, sigma_switch: float = 1.0) -> ComposedDenoiser:
    chosen = sources or list(PLANE)
    return ComposedDenoiser(
        {source: PLANE[source].denoise for source in chosen},
        {source: GaussianEvidence(PLANE[source], Calibration.none(), sigma_switch) for source in chosen},
        {source: PRIOR[source] for source in chosen},
        strategy,
        sigma_switch,
    )


def sampled(
    strategy: Strategy, n: int, seed: int, method: Method = "heun", steps: int = 24
) -> tuple[Tensor, Tensor | None]:
    trajectory = plane(strategy).start(seed, range(n))
    x_0 = sample(
        trajectory,
        torch.randn(n, *SHAPE, generator=generator(seed), dtype=torch.float64),
        karras_sigmas(steps, through=1.0),
        method=method,
        generator=generator(seed + 1),
        on_step=trajectory.on_step,
        jump=trajectory.jump,
    )
    return x_0.flatten(1), trajectory.drawn


def drawn_directly(n: int, seed: int) -> Tensor:
    g = generator(seed)
    source = torch.multinomial(torch.tensor(list(PRIOR.values()), dtype=torch.float64), n, True, generator=g).tolist()
    points = []
    for name in (list(PLANE)[i] for i in source):
        part = PLANE[name]
        k = int(torch.multinomial(part.log_share.exp(), 1, generator=g))
        along, off = torch.randn(1, generator=g), torch.randn(2, generator=g).double()
        axis = part.basis[k, :, 0]
        off = part.rest[k].sqrt() * (off - axis * (axis @ off))
        points.append(part.mean[k] + part.variance[k, 0].sqrt() * along * axis + off)
    return torch.stack(points)


def energy_p_value(a: Tensor, b: Tensor, permutations: int = 499, seed: int = 0) -> float:
    """Return the p-value of equal laws: energy distance (Szekely and Rizzo 2013) under permuted labels."""
    pooled = torch.cat([a, b])
    distance = torch.cdist(pooled, pooled)
    labels = torch.cat([torch.full((len(a),), 1 / len(a)), torch.full((len(b),), -1 / len(b))]).double()
    order = np.random.default_rng(seed)
    shuffled = torch.stack([labels, *(labels[order.permutation(len(labels))] for _ in range(permutations))])
    statistic = -torch.einsum("pi,ij,pj->p", shuffled, distance, shuffled)
    return float((statistic >= statistic[0] - 1e-12).double().mean())


@pytest.mark.parametrize("strategy", ["routed", "assign", "posterior"])
def test_strategies_have_the_law_of_the_mixture(strategy: Strategy) -> None:
    assert energy_p_value(sampled(strategy, 400, seed=1)[0], drawn_directly(400, seed=2)) > 0.01


@pytest.mark.parametrize(("method", "steps"), [("dpmpp_2m", 24), ("ancestral", 200)])
def test_routed_has_the_law_of_the_mixture_under_every_sampler(method: Method, steps: int) -> None:
    assert energy_p_value(sampled("routed", 400, 1, method, steps)[0], drawn_directly(400, seed=2)) > 0.01


def test_routed_and_assign_have_one_law() -> None:
    assert energy_p_value(sampled("routed", 400, seed=3)[0], sampled("assign", 400, seed=4)[0]) > 0.01


def test_the_naive_average_has_another_law() -> None:
    """So the test of laws can fail."""
    assert energy_p_value(sampled("uniform", 400, seed=1)[0], drawn_directly(400, seed=2)) < 0.01


def test_the_test_of_laws_sees_wrong_proportions() -> None:
    x_0, drawn = sampled("assign", 400, seed=1)
    assert drawn is not None
    even = torch.cat([x_0[drawn == i][:60] for i in range(3)])
    assert energy_p_value(even, drawn_directly(400, seed=2)) < 0.01


def assert_proportions(drawn: Tensor, share: list[float]) -> None:
    n = len(drawn)
    for i, expected in enumerate(share):
        error = math.sqrt(expected * (1 - expected) / n)
        assert abs(float((drawn == i).double().mean()) - expected) < 3.5 * error


def test_assigned_sources_have_the_proportions_of_the_prior() -> None:
    drawn = plane("assign").start(0, range(4000)).drawn
    assert drawn is not None
    assert_proportions(drawn, list(PRIOR.values()))


@pytest.mark.parametrize("method", get_args(Method))
def test_routed_sources_have_the_proportions_of_the_prior(method: Method) -> None:
    drawn = sampled("routed", 2000, 5, method)[1]
    assert drawn is not None
    assert_proportions(drawn, list(PRIOR.values()))


def test_routed_draws_from_the_posterior() -> None:
    composed = plane("routed")
    x = torch.tensor([0.3, 0.9], dtype=torch.float64).reshape(1, *SHAPE).expand(4000, *SHAPE)
    level = torch.ones(4000, dtype=torch.float64)
    trajectory = composed.start(6, range(4000))
    trajectory.on_step(x, level)
    assert trajectory.drawn is not None
    share = composed.weights(x[:1], level[:1])[:, 0].tolist()
    assert min(share) > 0.05
    assert_proportions(trajectory.drawn, share)


@pytest.mark.parametrize("strategy", ["assign", "routed"])
def test_a_draw_depends_on_seed_and_index_alone(strategy: Strategy) -> None:
    x, level = torch.full((1, *SHAPE), 0.4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def draws(seed: int, indices: list[int]) -> list[int]:
        trajectory = plane(strategy).start(seed, indices)
        trajectory.on_step(x.expand(len(indices), *SHAPE), level.expand(len(indices)))
        assert trajectory.drawn is not None
        return trajectory.drawn.tolist()

    together = draws(0, list(range(40)))
    assert [draws(0, [k])[0] for k in range(40)] == together
    order = [17, 3, 39, 0, 3]
    assert draws(0, order) == [together[k] for k in order]
    assert draws(1, list(range(40))) != together
    torch.manual_seed(5)
    assert draws(0, list(range(40))) == together


@pytest.mark.parametrize("switch", [0.7, 2.0, math.inf])
def test_the_jump_of_a_trajectory_is_the_level_where_it_draws(switch: float) -> None:
    composed, drawn = plane("routed", sigma_switch=switch), []
    trajectory = composed.start(0, range(4))
    for level in karras_sigmas(12, through=composed.sigma_switch)[:-1]:
        trajectory.on_step(torch.zeros(4, *SHAPE), level.expand(4))
        drawn += [] if trajectory.drawn is None else [float(level)]
    assert drawn[0] == min(trajectory.jump, 80.0)


@pytest.mark.parametrize("strategy", ["assign", "posterior", "uniform"])
def test_a_trajectory_without_a_draw_on_its_way_has_no_jump(strategy: Strategy) -> None:
    assert plane(strategy).start(0, [0]).jump == math.inf


def test_a_draw_takes_nothing_along_from_the_mixture_above_it() -> None:
    """Where `dpmpp_2m` extrapolates from the mixture to the source, its end is far from that of small steps."""
    noise = torch.randn(200, *SHAPE, generator=generator(0), dtype=torch.float64)

    def run(steps: int, carried: bool) -> tuple[Tensor, Tensor]:
        trajectory = plane("routed").start(0, range(200))
        jump = math.inf if carried else trajectory.jump
        grid, on_step = karras_sigmas(steps, through=1.0), trajectory.on_step
        x_0 = sample(trajectory, noise, grid, method="dpmpp_2m", on_step=on_step, jump=jump)
        assert trajectory.drawn is not None
        return x_0, trajectory.drawn

    fine, drawn = run(500, carried=False)

    def error(carried: bool) -> float:
        x_0, followed = run(71, carried)
        return float((x_0 - fine)[followed == drawn].square().mean())

    assert error(carried=False) < 1e-4
    assert error(carried=True) > 10 * error(carried=False)


def test_samples_do_not_depend_on_their_batch() -> None:
    noise = torch.randn(8, *SHAPE, generator=generator(0), dtype=torch.float64)
    grid = karras_sigmas(12, through=1.0)

    def run(indices: list[int]) -> Tensor:
        trajectory = plane("routed").start(0, indices)
        return sample(trajectory, noise[indices], grid, on_step=trajectory.on_step)

    together = run(list(range(8)))
    alone = torch.cat([run([k]) for k in range(8)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)


def test_a_source_of_no_weight_is_never_drawn() -> None:
    composed = plane("routed")
    x = torch.tensor([-1.5, 0.0], dtype=torch.float64).reshape(1, *SHAPE).expand(500, *SHAPE)
    trajectory = composed.start(0, range(500))
    trajectory.on_step(x, torch.full((500,), 0.01, dtype=torch.float64))
    assert trajectory.drawn is not None
    assert trajectory.drawn.unique().tolist() == [0]


def test_not_even_the_smallest_draw_takes_a_source_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros((), dtype=torch.float64))
    near, far = Points(torch.zeros(1, 1, 2, 2)), Points(torch.ones(1, 1, 2, 2))
    parts = {"far": far, "near": near}
    trajectory = ComposedDenoiser(parts, parts, {"far": 0.5, "near": 0.5}, "routed").start(0, [0])
    trajectory.on_step(near.points, torch.full((1,), 0.01))
    assert trajectory.drawn is not None
    assert trajectory.drawn.tolist() == [1]


def follow(trajectory_of: ComposedDenoiser, levels: list[float], on_step: bool) -> list[list[int] | None]:
    """Return what is drawn after each level, as x moves about."""
    trajectory, course = trajectory_of.start(0, range(30)), []
    for step, sigma in enumerate(levels):
        x = torch.randn(30, *SHAPE, generator=generator(step), dtype=torch.float64)
        level = torch.full((30,), sigma, dtype=torch.float64)
        if on_step:
            trajectory.on_step(x, level)
        trajectory(x, level)
        course.append(None if trajectory.drawn is None else trajectory.drawn.tolist())
    return course


def test_routed_draws_once_at_the_switch_and_holds() -> None:
    course = follow(plane("routed"), [80.0, 1.5, 1.0, 0.5, 0.01], on_step=True)
    assert course[:2] == [None, None]
    assert course[2] is not None
    assert course[2] == course[3] == course[4]


def test_routed_without_on_step_draws_at_the_first_level_below_the_switch() -> None:
    course = follow(plane("routed"), [80.0, 1.5, 1.0, 0.5, 0.01], on_step=False)
    assert course[:3] == [None, None, None]
    assert course[3] is not None
    assert course[3] == course[4]


def test_assign_draws_at_the_start_and_the_others_never_do() -> None:
    course = follow(plane("assign"), [80.0, 1.0, 0.1], on_step=True)
    assert course[0] is not None
    assert course[0] == course[1] == course[2]
    assert follow(plane("posterior"), [80.0, 1.0, 0.1], on_step=True) == [None] * 3
    assert follow(plane("uniform"), [80.0, 1.0, 0.1], on_step=True) == [None] * 3


def test_a_trajectory_mixes_before_its_draw_and_follows_one_source_after_it() -> None:
    composed = plane("routed")
    trajectory = composed.start(0, range(20))
    x = torch.randn(20, *SHAPE, generator=generator(0), dtype=torch.float64)
    above, below = torch.full((20,), 1.5, dtype=torch.float64), torch.full((20,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(trajectory(x, above), compose_plane(x, above), rtol=0, atol=1e-11)
    trajectory.on_step(x, below)
    assert trajectory.drawn is not None
    parts = list(PLANE.values())
    for level in (below, above):  # churn may raise the level again
        pairs = zip(x, level, trajectory.drawn.tolist(), strict=True)
        expected = torch.cat([parts[i].denoise(one[None], sigma[None]) for one, sigma, i in pairs])
        torch.testing.assert_close(trajectory(x, level), expected, rtol=0, atol=1e-12)


def compose_plane(x: Tensor, sigma: Tensor) -> Tensor:
    joint = torch.stack([math.log(PRIOR[s]) + PLANE[s].log_density(x, sigma) for s in PLANE]).softmax(0)
    return torch.einsum("sb,sb...->b...", joint, torch.stack([part.denoise(x, sigma) for part in PLANE.values()]))


def test_a_single_source_is_itself_under_every_strategy() -> None:
    x = torch.randn(5, *SHAPE, generator=generator(0), dtype=torch.float64)
    for strategy in ("routed", "assign", "posterior", "uniform"):
        for sigma in (0.1, 1.0, 20.0):
            level = torch.full((5,), sigma, dtype=torch.float64)
            denoised = plane(strategy, ["pair"]).start(0, range(5))(x, level)
            torch.testing.assert_close(denoised, PLANE["pair"].denoise(x, level), rtol=0, atol=1e-13)


@pytest.mark.parametrize("switch", [1.0, 0.7, 0.6, 0.3])
def test_routed_draws_at_the_switch_in_single_precision_too(switch: float) -> None:
    """0.3 and 0.6 become larger as they are rounded to float32, 0.7 smaller."""
    trajectory = plane("routed", sigma_switch=switch).start(0, range(4))
    trajectory.on_step(torch.zeros(4, *SHAPE), torch.full((4,), switch))
    assert trajectory.drawn is not None


def test_a_weight_that_is_no_number_shows() -> None:
    composed = compose(data_sets())
    x, sigma = around(data_sets(), 0.5)
    weights = composed.weights(x, sigma)
    expected = composed.mixed(x, sigma, weights)
    weights[1, 2] = math.nan
    found = composed.mixed(x, sigma, weights)
    assert found[2].isnan().all()
    others = torch.arange(len(x)) != 2
    torch.testing.assert_close(found[others], expected[others], rtol=0, atol=0)


def test_one_source_alone_keeps_the_switch() -> None:
    composed = compose(data_sets())
    composed.sigma_switch = 3.5
    assert composed.alone("b").sigma_switch == 3.5
