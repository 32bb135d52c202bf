"""Evidence of a head. Oracles: the analytic log ratio of Gaussians, invariances and limits of the fit, a hook."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from cdm_lightning.backbone import UViT, freeze
from cdm_lightning.denoiser import EDM
from cdm_lightning.evidence import BackboneFeatures, NoisedFeatures, RatioEvidence, RatioHead, Whitening
from cdm_lightning.evidence.ratio import hat
from cdm_lightning.gaussians import Gaussians

KNOTS = torch.logspace(-1, 0.5, 7)
MEAN, SPREAD = torch.tensor([0.5, -0.3, 0.2]), 0.4  # of the source; public's are 0 and 0.6
PUBLIC_SPREAD = 0.6
RIDGE = 1e-5


def noised(n: int, seed: int, mean: Tensor, spread: float) -> NoisedFeatures:
    """Return noised draws of a Gaussian, at levels even in log sigma; features are x and its square."""
    g = torch.Generator().manual_seed(seed)
    sigma = KNOTS[0] * (KNOTS[-1] / KNOTS[0]) ** torch.rand(n, generator=g)
    x = mean + (spread**2 + sigma.square()).sqrt()[:, None] * torch.randn(n, 3, generator=g)
    return features(x, sigma)


def features(x: Tensor, sigma: Tensor) -> NoisedFeatures:
    return NoisedFeatures(torch.cat([x, x.square().sum(1, keepdim=True)], 1), sigma)


def pair(n: int) -> tuple[NoisedFeatures, NoisedFeatures]:
    return noised(n, 0, MEAN, SPREAD), noised(3 * n, 1, torch.zeros(3), PUBLIC_SPREAD)


def analytic(x: Tensor, sigma: Tensor) -> Tensor:
    """Return log p_i(x; sigma) - log p_public(x; sigma)."""
    own, public = SPREAD**2 + sigma.square(), PUBLIC_SPREAD**2 + sigma.square()
    square = (x - MEAN).square().sum(1) / own - x.square().sum(1) / public
    return -0.5 * (square + 3 * (own / public).log())


def error(n: int) -> float:
    """Return the root mean square error, in nats, of a head of n images, on unseen images of both sides."""
    head = RatioHead.fit(*pair(n), KNOTS, RIDGE)
    errors = []
    for seed, (mean, spread) in enumerate([(MEAN, SPREAD), (torch.zeros(3), PUBLIC_SPREAD)]):
        unseen = noised(4000, 100 + seed, mean, spread)
        errors.append(head.logit(unseen) - analytic(unseen.value[:, :3], unseen.sigma))
    return float(torch.cat(errors).square().mean().sqrt())


def test_a_head_approximates_the_analytic_log_ratio_of_two_gaussians() -> None:
    seen = noised(4000, 7, MEAN, SPREAD)
    spread = analytic(seen.value[:, :3], seen.sigma).std()  # 0.76
    assert error(16000) < 0.1 < 0.2 * float(spread)  # nats; measured: 0.063


def test_its_error_falls_with_the_images() -> None:
    assert error(16000) < 0.5 * error(1000)  # 0.21 nats


def test_classes_of_unequal_size_leave_no_ratio_in_the_logit() -> None:
    own, public = pair(500)
    thrice = NoisedFeatures(public.value.repeat(3, 1), public.sigma.repeat(3))
    once, again = (RatioHead.fit(own, side, KNOTS, RIDGE) for side in (public, thrice))
    torch.testing.assert_close(once.logit(own), again.logit(own), rtol=0, atol=0.02)


def test_the_same_images_on_both_sides_say_nothing() -> None:
    own = noised(500, 0, MEAN, SPREAD)
    head = RatioHead.fit(own, own, KNOTS, RIDGE)
    torch.testing.assert_close(head.logit(own), torch.zeros(500), rtol=0, atol=1e-5)


def test_a_strong_ridge_leaves_no_weight() -> None:
    head = RatioHead.fit(*pair(500), KNOTS, 1e4)
    torch.testing.assert_close(head.weight, torch.zeros(7, 4), rtol=0, atol=1e-3)


def test_a_fit_repeats_in_bytes() -> None:
    first, second = (RatioHead.fit(*pair(200), KNOTS, RIDGE) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_tables_are_interpolated_in_log_sigma() -> None:
    sigma = torch.tensor([0.01, 0.1, 0.13, 1.0, 2.9, 50.0])
    table = torch.arange(7.0).square()
    expected = np.interp(sigma.log().numpy(), KNOTS.log().numpy(), table.numpy())
    np.testing.assert_allclose((hat(sigma, KNOTS) @ table).numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(hat(sigma, KNOTS).sum(1), torch.ones(6))


def test_whitened_public_features_are_centred_and_uncorrelated() -> None:
    public = noised(4000, 1, torch.ones(3), PUBLIC_SPREAD)
    white = Whitening.fit(public, KNOTS, 3)(public).value
    assert white.shape == (4000, 3)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(white.T @ white / 4000, torch.eye(3), rtol=0, atol=0.05)


def backbone(guided: bool) -> UViT:
    network = UViT(8, 1, guided, patch_size=2, width=16, depth=3, heads=2)
    network.initialize(torch.Generator().manual_seed(0))
    freeze(network)
    return network


def test_features_of_the_backbone_are_the_pooled_tokens_of_its_middle_block() -> None:
    network, kept = backbone(guided=True), []
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    guide = Gaussians.fit(images, seed=0, rank=4)
    x, sigma = images[:3], torch.tensor([0.1, 0.7, 3.0])
    handle = network.mid_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    found = BackboneFeatures(network, guide, EDM())(x, sigma)
    draft = guide.denoise(x, sigma)
    level = sigma[:, None, None, None]
    seen = torch.cat([draft, (x - draft) / level], 1)
    network(EDM().c_in(sigma)[:, None, None, None] * x, EDM().c_noise(sigma), guide=seen)
    handle.remove()
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)
    tokens = kept[0][:, 1:].reshape(3, 4, 4, 16)  # without the time's
    quarters = nn.functional.avg_pool2d(tokens.permute(0, 3, 1, 2), 2).flatten(1)
    expected = torch.cat([quarters, tokens.flatten(1, 2).std(1, correction=0)], 1)
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.sigma, sigma)


def test_evidence_is_the_logit_of_the_features_and_of_each_image_by_itself() -> None:
    network = backbone(guided=False)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.3, 1.0, 2.0])
    bare = BackboneFeatures(network, None, EDM())
    own = bare(x.repeat(8, 1, 1, 1), KNOTS.repeat_interleave(5)[:32])
    white = BackboneFeatures(network, None, EDM(), Whitening.fit(own, KNOTS, 5))
    head = RatioHead(KNOTS, torch.arange(35.0).reshape(7, 5), torch.arange(7.0))
    evidence = RatioEvidence(white, head)
    found = evidence.log_density(x, sigma, torch.zeros(4))
    one_by_one = [evidence.log_density(x[k : k + 1], sigma[k : k + 1]) for k in range(4)]
    torch.testing.assert_close(found, torch.cat(one_by_one), rtol=1e-3, atol=1e-2)
    at_first = white(x[:1], sigma[:1]).value[0] @ head.weight[0] + head.bias[0]
    assert math.isclose(float(found[0]), float(at_first), rel_tol=1e-3, abs_tol=1e-2)
