"""A step of DP-SGD. Oracles: each image alone, all neighbours of a small source, the known variance of the noise."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdm_lightning.backbone import UViT
from cdm_lightning.compartment import Compartment
from cdm_lightning.denoiser import SIGMA_MIN, per_image
from cdm_lightning.drafts import DraftError, ReleasedDraft
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.images import from_uint8
from cdm_lightning.loss import denoising_loss, draw_sigma
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.phase import Phase
from cdm_lightning.private_gradient import PrivateSteps, clipped, norms, summed_gradient
from cdm_lightning.prompts import Tokens
from cdm_lightning.public import Public
from cdm_lightning.seeding import generator, normal

SECRET = b"0123456789abcdef0123456789abcdef"
STEPS = PrivateSteps(
    count=50,
    rate=0.3,
    expected=6.0,
    multiplier=0.8,
    clipping_norm=0.02,
    draws=3,
    together=2,
    secret=SECRET,
    named={"source": "alice"},
    epsilon=lambda done: done / 10,
)
Setting = tuple[CompartmentalizedDiffusion, Tensor]


@pytest.fixture(params=["closed_form", "none"])
def setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Return a module that is about to train a private prompt on a network of random weights, and seven images."""
    images = torch.randint(0, 256, (7, 1, 8, 8), generator=generator("images"), dtype=torch.uint8)
    form = Gaussians.fit(from_uint8(images), seed=0, rank=4, clusters=1)
    error = DraftError(torch.tensor([5.0]), torch.tensor([0.01, 10.0]), torch.tensor([[0.05, 0.4]]))
    public = Public(form, Strength(1.0, 1.0), error, Calibration(torch.ones(1), torch.ones(1), 0.1), 3.0, 4)
    backbone = UViT(8, 1, guided=request.param != "none", patch_size=4, width=16, depth=3, heads=2)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator("weights", parameter.numel()))
    module = CompartmentalizedDiffusion(backbone, guide=request.param, compartment="tokens", tokens=2)
    module.begin_source(
        Phase("source", "alice", 1, 1), public, ReleasedDraft(form, 7), Compartment(7, form, form), STEPS
    )
    module._trainer = SimpleNamespace(global_step=4)  # type: ignore[assignment]
    monkeypatch.setattr(CompartmentalizedDiffusion, "log", lambda *_, **__: None)
    return module, images


def tokens_of(module: CompartmentalizedDiffusion) -> Tensor:
    assert isinstance(module.trained, Tokens)
    return module.trained.tokens


def alone(module: CompartmentalizedDiffusion, image: Tensor) -> Tensor:
    """Return the gradient of one image's mean loss over its draws, one draw after another, by the ordinary network."""
    (own,), total = STEPS.generators(image[None], 4), torch.zeros_like(tokens_of(module))
    sigmas = draw_sigma(STEPS.draws, SIGMA_MIN, module.highest_sigma, own)
    noises = normal((STEPS.draws, *image.shape), own)
    for sigma, noise in zip(sigmas.split(1), noises.split(1), strict=True):
        x_0, label = from_uint8(image[None]), torch.zeros(1, dtype=torch.long)
        x = x_0 + per_image(sigma, x_0) * noise
        denoised, scale = module.finish_drafts(module.network_in_training(label), [], label, x, sigma, own)
        (gradient,) = torch.autograd.grad(denoising_loss(denoised, x_0, scale).sum(), tokens_of(module))
        total += gradient / STEPS.draws
    return total


def together(module: CompartmentalizedDiffusion, images: Tensor, norm: float) -> Tensor:
    """Return the summed gradient of images as the module makes it."""

    def losses(part: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda tokens: module.losses_by_image(STEPS, part, tokens)

    parts = [(len(part), losses(part)) for part in images.split(STEPS.together) if len(part)]
    return summed_gradient(tokens_of(module), parts, norm)


def test_gradients_are_those_of_each_image_alone(setting: Setting) -> None:
    module, images = setting
    for norm in (1e9, STEPS.clipping_norm):
        slow = sum(clipped(alone(module, image)[None], norm)[0] for image in images)
        assert isinstance(slow, Tensor)
        fast = together(module, images, norm)
        assert float((fast - slow).norm() / slow.norm()) < 1e-6
    longest = max(float(alone(module, image).norm()) for image in images)
    assert longest > STEPS.clipping_norm, "something was cut"


def test_norms_are_those_of_each_image_alone(setting: Setting) -> None:
    module, images = setting
    slow = [float(alone(module, image).norm()) for image in images]
    assert norms(*module.private_losses(STEPS, images)).tolist() == pytest.approx(slow, rel=1e-5)


def test_one_image_less_moves_the_sum_by_at_most_the_clipping_norm(setting: Setting) -> None:
    """All neighbours. What the others draw must not depend on who else is there."""
    module, images = setting
    whole = together(module, images, STEPS.clipping_norm)
    for k in range(len(images)):
        less = together(module, torch.cat([images[:k], images[k + 1 :]]), STEPS.clipping_norm)
        own = clipped(alone(module, images[k])[None], STEPS.clipping_norm)[0]
        assert float((whole - less - own).norm()) < 1e-5 * STEPS.clipping_norm
        assert float((whole - less).norm()) <= STEPS.clipping_norm * (1 + 1e-5)


def test_what_is_returned_has_the_released_gradient_and_says_nothing_else(setting: Setting) -> None:
    module, images = setting
    tokens = tokens_of(module)
    for some in (images, images[:0]):
        (output,) = module.training_step({"image": some}, 0).values()
        (gradient,) = torch.autograd.grad(output, tokens)
        summed = together(module, some, STEPS.clipping_norm)
        assert torch.equal(gradient, STEPS.released(summed, 4).to(gradient))
    noise = STEPS.released(torch.zeros(tokens.shape, dtype=torch.float64), 4)
    assert torch.equal(gradient, noise.to(gradient)), "an empty step is nothing but noise"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e30, 1e30) | st.sampled_from([math.inf, -math.inf, math.nan]), min_size=6, max_size=6),
    st.floats(1e-6, 1e3),
)
def test_no_gradient_is_longer_than_the_norm(values: list[float], norm: float) -> None:
    gradients = torch.tensor(values).reshape(3, 2)
    cut = clipped(gradients, norm)
    assert bool((cut.norm(dim=1) <= norm * (1 + 1e-12)).all())
    for before, after in zip(gradients.double(), cut, strict=True):
        if bool(before.isfinite().all()) and float(before.norm()) <= norm:
            assert torch.equal(after, before)


def test_zero_gradients_leave_noise_of_the_known_variance() -> None:
    count = 100_000
    noise = STEPS.released(torch.zeros(count, dtype=torch.float64), 0)
    deviation = STEPS.multiplier * STEPS.clipping_norm / STEPS.expected
    assert float(noise.var()) == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / count))
    assert abs(float(noise.mean())) < 5 * deviation / math.sqrt(count)
    assert float(torch.dot(noise, STEPS.released(torch.zeros(count).double(), 1))) / count < 5 * deviation**2 / 300


def test_each_image_is_chosen_with_the_rate_by_itself() -> None:
    chosen = torch.stack([STEPS.chosen(2000, step) for step in range(STEPS.count)]).double()
    deviation = math.sqrt(STEPS.rate * (1 - STEPS.rate) / chosen.numel())
    assert float(chosen.mean()) == pytest.approx(STEPS.rate, abs=5 * deviation)
    assert float(chosen.sum(1).var()) == pytest.approx(2000 * STEPS.rate * (1 - STEPS.rate), rel=5 * math.sqrt(2 / 49))
    together = float((chosen[:-1] * chosen[1:]).mean())
    assert together == pytest.approx(STEPS.rate**2, abs=0.01)
    assert bool(replace(STEPS, rate=1.0).chosen(2000, 0).all())


def test_all_that_is_random_comes_from_the_secret() -> None:
    others = replace(STEPS, secret=b"1" * 32), replace(STEPS, named={"source": "bob"})
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    for other in others:
        assert not torch.equal(STEPS.chosen(100, 0), other.chosen(100, 0))
        zeros = torch.zeros(9).double()
        assert not torch.equal(STEPS.released(zeros, 0), other.released(zeros, 0))
        assert STEPS.generators(images, 0)[0].initial_seed() != other.generators(images, 0)[0].initial_seed()


@pytest.mark.parametrize("step", [-1, 50])
def test_no_step_is_taken_that_the_budget_does_not_pay_for(step: int) -> None:
    with pytest.raises(RuntimeError, match="outside the 50 steps that the privacy budget pays for"):
        STEPS.chosen(10, step)
