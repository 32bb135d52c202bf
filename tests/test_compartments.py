"""The opened compartments. Oracle: one image, one source, one call at a time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone, UViT
from cdm_lightning.compartment import ClassForm, Compartment
from cdm_lightning.compartments import Compartments
from cdm_lightning.composition import DraftDenoiser, RowDenoiser
from cdm_lightning.conv_net import ConvNet
from cdm_lightning.denoiser import EDM, VP, Network, Preconditioning, denoise, guided_denoise, linear_time
from cdm_lightning.drafts import DraftError
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.prompts import Full, LoRA, Prompt, Tokens
from cdm_lightning.public import Public
from cdm_lightning.sampling import karras_sigmas, sample
from cdm_lightning.source_forms import closed_form_of
from cdm_lightning.strategy import Strategy
from cdm_lightning.unet import UNet

SHAPE = (1, 8, 8)
SWITCH = 1.0
SIZES = {"two": 40, "none": 25, "three": 200, "plain": 25, "also_two": 60, "lora": 30, "also_lora": 31, "full": 32}
TOKENS = {"two": 2, "three": 3, "also_two": 2}
SOURCES = list(SIZES)
PRECONDITIONINGS = [EDM(), VP(linear_time)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NETWORKS: dict[str, Callable[[bool], Backbone]] = {
    "transformer": lambda guided: UViT(8, 1, guided, patch_size=4, width=16, depth=3, heads=2),
    "ConvNet": lambda guided: ConvNet(8, 1, guided, features=8, dilations=(1, 2), width=16),
    "U-Net": lambda guided: UNet(8, 1, guided, features=(8, 16), width=16),
}


def network(guided: bool, name: str = "transformer") -> Backbone:
    """Return a backbone of random weights, large enough that guide, prompt and time all matter."""
    made = NETWORKS[name](guided)
    made.initialize(generator(0))
    with torch.no_grad():
        for k, parameter in enumerate(made.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(k)))
    return made.eval().requires_grad_(False)


def closed_form(seed: int) -> Gaussians:
    g = generator(seed)
    centre = 0.3 * torch.randn(1, *SHAPE, generator=g)
    return Gaussians.fit(centre + 0.3 * torch.randn(30, *SHAPE, generator=g), seed=0, rank=6)


def whole(
    n: int, seed: int, prompt: Prompt | None = None, classes: Mapping[str, ClassForm] | None = None
) -> Compartment:
    """Return a compartment of n images."""
    fine = closed_form(seed)
    return Compartment(n, closed_form_of(fine, n, public()), fine, prompt, classes or {})


def public() -> Public:
    error = torch.tensor([[0.05, 0.3, 0.6], [0.03, 0.2, 0.5]])
    draft_error = DraftError(torch.tensor([20.0, 100.0]), torch.tensor([0.01, 0.5, 80.0]), error)
    return Public(closed_form(99), Strength(), draft_error, Calibration.none(), SWITCH, 6)


def prompt(source: str, backbone: Backbone) -> Prompt | None:
    """Return a prompt that is far from its start, so that it matters."""
    g = generator(SOURCES.index(source))
    made: Prompt
    if source in TOKENS:
        made = Tokens(backbone, TOKENS[source], 0, g)
    elif "lora" in source:
        made = LoRA(backbone, 2, 0, g)
    elif source == "full":
        made = Full(backbone, 0, g)
    else:
        return None
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_((0.1 if source == "full" else 1.0) * torch.randn(parameter.shape, generator=g))
    return made.requires_grad_(False)


def opened(
    guided: bool = True,
    sources: list[str] = SOURCES,
    switch: float = SWITCH,
    preconditioning: Preconditioning = PRECONDITIONINGS[0],
    name: str = "transformer",
) -> Compartments:
    backbone = network(guided, name)
    parts = {s: whole(SIZES[s], SOURCES.index(s), prompt(s, backbone)) for s in sources}
    return Compartments(backbone, parts, public(), guided, switch, preconditioning)


@dataclass
class OneByOne:
    """The slow version: D_i of one image, from the definition."""

    compartments: Compartments
    preconditioning: Preconditioning

    def __call__(self, x: Tensor, sigma: float, source: str) -> Tensor:
        own = self.compartments.compartments[source]
        level = torch.tensor([sigma])
        draft = own.closed_form.denoise(x[None], level)
        if sigma >= self.compartments.sigma_switch:
            return draft[0]
        network: Network = self.compartments.backbone
        if own.prompt is not None:
            one = torch.zeros(1, dtype=torch.long)
            network = type(own.prompt).network(self.compartments.backbone, [own.prompt], one, one)
        if not self.compartments.guided:
            return denoise(self.preconditioning, network, x[None], level)[0]
        error = self.compartments.public.error.at(level, torch.tensor([float(own.n)]))
        return guided_denoise(self.preconditioning, network, x[None], level, draft, error)[0]


def mixed_rows(n: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of every source, in disorder, at levels above, at and below the switch."""
    order = torch.randperm(n, generator=generator(5))
    sigma = torch.tensor([0.01, 0.3, 0.999, 1.0, 1.5, 80.0]).repeat(n // 6)[order]
    source = torch.arange(len(SOURCES)).repeat_interleave(n // len(SOURCES))[order.flip(0)]
    return torch.randn(n, *SHAPE, generator=generator(6)) * (0.5 + sigma[:, None, None, None]), sigma, source


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("guided", [True, False])
@torch.inference_mode()
def test_rows_equal_one_call_for_each(guided: bool, preconditioning: Preconditioning, name: str) -> None:
    compartments, (x, sigma, source) = opened(guided, preconditioning=preconditioning, name=name), mixed_rows()
    rows, slow = compartments.rows(x, sigma, source), OneByOne(compartments, preconditioning)
    for k in range(len(x)):
        expected = slow(x[k], float(sigma[k]), SOURCES[int(source[k])])
        torch.testing.assert_close(rows[k], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_prompt_guide_level_and_source_all_matter() -> None:
    """So that the comparison with one call for each means something."""
    compartments, x, sigma = opened(), torch.randn(1, *SHAPE, generator=generator(1)), torch.tensor([0.3])
    denoised = [compartments[source](x, sigma) for source in SOURCES]
    differences = torch.cdist(torch.cat(denoised).flatten(1), torch.cat(denoised).flatten(1))
    assert (differences + torch.eye(len(SOURCES))).min() > 1e-2
    own = compartments.compartments["two"]
    bare = Compartments(
        network(True), {"two": Compartment(own.n, own.closed_form, own.fine)}, public(), True, SWITCH, EDM()
    )
    assert (bare["two"](x, sigma) - denoised[0]).abs().max() > 1e-2


@torch.inference_mode()
def test_a_source_is_a_callable_of_its_own() -> None:
    compartments, (x, sigma, _) = opened(), mixed_rows()
    assert list(compartments) == SOURCES
    assert len(compartments) == len(SOURCES)
    for i, source in enumerate(SOURCES):
        rows = compartments.rows(x, sigma, torch.full((len(x),), i))
        torch.testing.assert_close(compartments[source](x, sigma), rows, rtol=0, atol=0)
    with pytest.raises(ValueError, match="is not in list"):
        compartments["nobody"]


@torch.inference_mode()
def test_network_evaluations_are_counted_below_the_switch_alone() -> None:
    compartments, (x, sigma, source) = opened(), mixed_rows()
    compartments.rows(x, sigma, source)
    assert compartments.evaluations == int((sigma < SWITCH).sum()) == 24
    compartments.rows(x[:3], torch.full((3,), 5.0), source[:3])
    assert compartments.evaluations == 24
    compartments["none"](x[:2], torch.full((2,), 0.5))
    assert compartments.evaluations == 26


@torch.inference_mode()
def test_with_an_endless_switch_the_network_denoises_everything() -> None:
    compartments, (x, sigma, source) = opened(switch=math.inf), mixed_rows()
    rows, slow = compartments.rows(x, sigma, source), OneByOne(compartments, EDM())
    assert compartments.evaluations == 48
    for k in range(0, 48, 5):
        expected = slow(x[k], float(sigma[k]), SOURCES[int(source[k])])
        torch.testing.assert_close(rows[k], expected, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_finish_of_one_source_is_that_source() -> None:
    x = torch.randn(4, *SHAPE, generator=generator(1))
    for source, sigma in product(("none", "plain"), (0.01, 0.5, 1.0, 20.0)):
        alone, level = opened(sources=[source]), torch.full((4,), sigma)
        expected = alone.rows(x, level, torch.zeros(4, dtype=torch.long))
        torch.testing.assert_close(alone.finish(x, level), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@torch.inference_mode()
def test_finish_is_guided_by_the_union_s_draft_and_its_root_mean_square_error(
    preconditioning: Preconditioning,
) -> None:
    """Two sources of one Gaussian each, which are not alike: nothing is merged, so the draft is sum_i w_i G_i."""
    compartments = opened(sources=["none", "plain"], preconditioning=preconditioning)
    compartments.compartments["plain"] = whole(100, 3)
    x = torch.randn(3, *SHAPE, generator=generator(1))
    parts = list(compartments.compartments.values())

    def weights_of(level: Tensor) -> Tensor:
        return torch.stack([math.log(part.n) + part.closed_form.log_density(x, level) for part in parts]).softmax(0)

    def draft(level: Tensor) -> Tensor:
        shares = weights_of(level)[..., None, None, None]
        return (shares * torch.stack([part.closed_form.denoise(x, level) for part in parts])).sum(0)

    level = torch.full((3,), 0.2)
    weights = weights_of(level)
    errors = [compartments.public.error.at(level, torch.full((3,), n)) for n in (25.0, 100.0)]
    error = (weights[0] * errors[0] ** 2 + weights[1] * errors[1] ** 2).sqrt()
    expected = guided_denoise(preconditioning, compartments.backbone, x, level, draft(level), error)
    torch.testing.assert_close(compartments.finish(x, level), expected, rtol=1e-4, atol=1e-4)
    assert compartments.evaluations == 3
    above = torch.full((3,), 2.0)
    torch.testing.assert_close(compartments.finish(x, above), draft(above), rtol=0, atol=1e-5)
    assert compartments.evaluations == 3


@pytest.mark.parametrize("strategy", ["routed", "posterior"])
@torch.inference_mode()
def test_above_the_switch_no_weight_is_computed(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: sum_i w_i G_i, source by source."""
    compartments = opened(sources=["none", "plain", "two"])
    composed = compartments.composed(strategy)
    x = 4 * torch.randn(5, *SHAPE, generator=generator(1))
    for sigma in (SWITCH, 3.0, 80.0):
        level = torch.full((5,), sigma)
        expected = composed.mixed(x, level, composed.weights(x, level))
        with monkeypatch.context() as patch:
            patch.setattr(composed, "weights", None)
            torch.testing.assert_close(composed(x, level), expected, rtol=1e-4, atol=1e-5)
    assert compartments.evaluations == 0


def test_one_draft_is_finished_where_the_backbone_is_guided_and_all_prompts_are_alike_or_none_is_there() -> None:
    assert opened(sources=["none", "plain"]).obstacle is None
    assert opened(sources=["two"]).obstacle is None
    assert opened(sources=["none", "two"]).obstacle == "source 'none' has no prompt"
    assert opened(guided=False, sources=["none", "plain"]).obstacle == "the backbone is not guided"
    assert isinstance(opened(), RowDenoiser)
    assert isinstance(opened(), DraftDenoiser)


def test_prior_is_the_share_of_the_images() -> None:
    prior = opened().prior()
    assert prior == {source: n / sum(SIZES.values()) for source, n in SIZES.items()}
    assert math.fsum(prior.values()) == pytest.approx(1, abs=1e-12)


def test_evidence_is_that_of_each_closed_form() -> None:
    compartments, x, sigma = opened(), torch.randn(2, *SHAPE, generator=generator(1)), torch.tensor([0.5, 3.0])
    for source, evidence in compartments.evidence().items():
        expected = compartments.compartments[source].closed_form.log_density(x, sigma)
        assert torch.equal(evidence.log_density(x, sigma), expected)
        assert evidence.sigma_switch == SWITCH


@pytest.mark.parametrize(("strategy", "calls"), [("routed", 1), ("assign", 1), ("posterior", None), ("draft", 1)])
@torch.inference_mode()
def test_a_step_below_the_switch_costs_two_network_evaluations_and_above_it_none(
    strategy: str, calls: int | None
) -> None:
    compartments = opened(sources=["none", "plain"])
    composed = compartments.composed(strategy)  # type: ignore[arg-type]
    trajectory, grid = composed.start(0, range(6)), karras_sigmas(10, through=SWITCH)
    x_0 = sample(trajectory, torch.randn(6, *SHAPE, generator=generator(2)), grid, on_step=trajectory.on_step)
    assert x_0.isfinite().all()
    below = 2 * int(
        ((grid < SWITCH) & (grid > 0)).sum()
    )  # the step that begins at the switch has one, the last has one
    if calls is not None:
        assert compartments.evaluations == 6 * below
    else:
        assert 6 * below <= compartments.evaluations <= 12 * below


@torch.inference_mode()
def test_more_rows_than_one_pass_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: all of them in one pass, which is compared with one call for each above."""
    together, (x, sigma, source) = opened(), mixed_rows()
    expected = together.rows(x, sigma, source)
    monkeypatch.setattr(f"{Compartments.__module__}.AT_ONCE", 3)
    apart = opened()
    torch.testing.assert_close(apart.rows(x, sigma, source), expected, rtol=1e-4, atol=1e-4)
    assert apart.evaluations == together.evaluations


@torch.inference_mode()
def test_an_image_does_not_depend_on_the_rows_beside_it() -> None:
    compartments, (x, sigma, source) = opened(), mixed_rows()
    rows, some = compartments.rows(x, sigma, source), torch.tensor([3, 17, 8])
    torch.testing.assert_close(compartments.rows(x[some], sigma[some], source[some]), rows[some], rtol=1e-4, atol=1e-4)


def labelled(source: str, classes: dict[str, int]) -> Compartment:
    """Return a compartment with closed forms of its classes and a prompt that knows their labels."""
    made = Tokens(network(True), 2, len(classes), generator(len(source)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(50)
    forms = {label: ClassForm(n, closed_form(50 + n), closed_form(50 + n)) for label, n in classes.items()}
    return whole(sum(classes.values()), len(source), made.requires_grad_(False), forms)


@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@torch.inference_mode()
def test_under_a_class_the_compartments_are_those_of_its_images(preconditioning: Preconditioning) -> None:
    parts = {
        "both": labelled("both", {"cat": 30, "dog": 10}),
        "one": labelled("one", {"dog": 40}),
        "none": labelled("none", {}),
    }
    compartments = Compartments(network(True), parts, public(), True, SWITCH, preconditioning)
    dogs = compartments.under("dog")
    assert dogs.prior() == {"both": 0.2, "one": 0.8}, "p(i | c) is the share of the class's images"
    assert list(compartments.under("cat")) == ["both"]
    x, sigma = torch.randn(2, *SHAPE, generator=generator(1)), torch.tensor([0.3, 5.0])
    for source, n in (("both", 10), ("one", 40)):
        own, prompt = closed_form(50 + n), parts[source].prompt
        assert torch.equal(dogs.evidence()[source].log_density(x, sigma), own.log_density(x, sigma))
        assert isinstance(prompt, Tokens)
        assert prompt.labels is not None
        tokens = torch.cat([prompt.tokens, prompt.labels[2 if source == "both" else 1]], dim=1)[None]
        error = public().error.at(sigma[:1], torch.tensor([float(n)]))
        network_of_source = partial(compartments.backbone, prompt=tokens)
        draft = own.denoise(x[:1], sigma[:1])
        below = guided_denoise(preconditioning, network_of_source, x[:1], sigma[:1], draft, error)
        expected = torch.cat([below, own.denoise(x[1:], sigma[1:])])
        torch.testing.assert_close(dogs[source](x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_a_class_that_no_source_has_is_refused() -> None:
    parts = {"both": labelled("both", {"cat": 30, "dog": 10})}
    compartments = Compartments(network(True), parts, public(), True, SWITCH, EDM())
    with pytest.raises(BadInput, match="no chosen source has the class 'dgo'; there are cat, dog.*did you mean 'dog'"):
        compartments.under("dgo")
    with pytest.raises(BadInput, match="there are none: fit with model.class_labels true"):
        opened().under("dog")


def test_credits_are_tempered_up_to_the_higher_switch() -> None:
    for own, expected in ((0.25, SWITCH), (3.0, 3.0)):
        credited = opened(sources=["none", "plain"], switch=own).credited()
        assert credited.sigma_switch == expected
        assert {one.sigma_switch for one in credited.evidence.values()} == {expected}


@torch.inference_mode()
def test_the_union_of_mixed_sources_of_which_nothing_is_merged_is_their_mixture() -> None:
    compartments = opened(sources=["none", "plain"])
    parts = {
        name: replace(whole(n, seed), public_mix=mix)
        for name, n, seed, mix in (("none", 25, 1, 0.6), ("plain", 200, 3, 0.0))
    }
    mixed = compartments.with_sources(parts)
    x, sigma = torch.randn(6, *SHAPE, generator=generator(1)), torch.full((6,), 0.7)
    torch.testing.assert_close(
        mixed.union.log_density(x, sigma), mixed.mixture.log_density(x, sigma), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(mixed.union.denoise(x, sigma), mixed.mixture.denoise(x, sigma), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_error_of_the_union_between_sources_is_the_root_mean_square() -> None:
    """Oracle: by hand; images half-way, so that both sources have a share."""
    compartments = opened(sources=["none", "plain"])
    same = closed_form(1)
    moved = replace(same, mean=same.mean + 0.01)
    compartments.compartments["none"] = replace(whole(25, 1), fine=same, closed_form=closed_form_of(same, 25, public()))
    compartments.compartments["plain"] = replace(
        whole(100, 1), fine=moved, closed_form=closed_form_of(moved, 100, public())
    )
    parts = list(compartments.compartments.values())
    x, level = torch.randn(3, *SHAPE, generator=generator(1)), torch.full((3,), 0.9)
    joint = torch.stack([math.log(part.n) + part.closed_form.log_density(x, level) for part in parts])
    share = joint.softmax(0)
    assert int(((share[0] > 0.1) & (share[0] < 0.9)).sum()) >= 2
    errors = torch.stack([compartments.public.error.at(level, torch.full((3,), n)) for n in (25.0, 100.0)])
    expected = (share * errors.square()).sum(0).sqrt()
    log_joint, _ = compartments.union.explain(x, level)
    torch.testing.assert_close(compartments._error_of_union(log_joint, level), expected, rtol=1e-4, atol=1e-6)
