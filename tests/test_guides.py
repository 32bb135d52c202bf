"""The benchmark of guides. Oracles: partitions, bytes with one image changed, losses by hand, the training of a fit."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from benchmarks import guides
from benchmarks.guide_inputs import KNOWLEDGE, between, deviation, widen
from benchmarks.guide_parts import BOTH, DEEP, HEAD, TRANSFORMER, DeepHead, take_parts
from benchmarks.guide_training import Guide, PublicImages, Way, groups, loss_of, train, unguided
from benchmarks.training import train_network
from cdm_lightning.backbone import UViT
from cdm_lightning.conv_net import ConvNet as OurConvNet
from cdm_lightning.denoiser import EDM, denoise, guided_denoise, per_image
from cdm_lightning.gaussians import Gaussians
from cdm_lightning.pseudo_sources import FOLDS, PseudoSources, folds_of
from cdm_lightning.seeding import generator
from cdm_lightning.uvit_layers import sinusoidal_embedding
from tests.conv_backbone import ConvNet
from tests.test_drafts import KEYS, LABELS, blobs, equal

PUBLIC = PublicImages(blobs(), KEYS, LABELS)
SMALL = Way(rank=8, sizes=(20,))
BATCH = 12


def network() -> ConvNet:
    made = ConvNet(8, 1, guided=True)
    made.initialize(generator(0, "test"))
    return made


def test_public_is_cut_as_the_way_says() -> None:
    by_class = groups(Way(), PUBLIC)
    assert by_class.tolist() == PseudoSources.cut(PUBLIC.images, KEYS, LABELS, seed=0).group.tolist()
    assert groups(Way(cut="one"), PUBLIC).tolist() == [0] * len(KEYS)
    assert sorted(set(groups(Way(cut="2 clusters"), PUBLIC).tolist())) == [0, 1]
    within = groups(Way(cut="2 clusters of each class"), PUBLIC)
    assert within.unique().tolist() == list(range(int(within.max()) + 1))
    assert all(len(by_class[within == group].unique()) == 1 for group in within.unique())


@pytest.mark.parametrize("in_fold", [False, True])
def test_only_drafts_in_fold_have_seen_the_image_that_they_guide(in_fold: bool) -> None:
    changed = PUBLIC.images.clone()
    changed[0] = -changed[0]
    way, fold = Way(rank=8, sizes=(), in_fold=in_fold), int(folds_of(KEYS)[0])
    one, other = (Guide.fit(way, PublicImages(images, KEYS, LABELS)) for images in (PUBLIC.images, changed))
    group = int(one.drafts.pseudo.group[0])
    moved = [
        not torch.allclose(
            *(guide.drafts.closed_forms[group, k, 0].mean.mean(0) for guide in (one, other)), atol=1e-6, rtol=0
        )
        for k in range(FOLDS)
    ]
    assert moved == [in_fold or k != fold for k in range(FOLDS)]


def drawn(guide: Guide) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator(0, "batch")
    rows = torch.randint(len(KEYS), (BATCH,), generator=draw)
    return rows, torch.rand(BATCH, generator=draw) + 0.1, torch.randn(BATCH, 1, 8, 8, generator=draw)


@pytest.mark.parametrize("blind", [0.0, 0.25, 1.0])
def test_the_loss_by_hand(blind: float) -> None:
    guide, net = Guide.fit(Way(rank=8, sizes=(), blind=blind), PUBLIC), network()
    rows, sigma, noise = drawn(guide)
    expected = []
    for row, level, own in zip(rows.tolist(), sigma, noise, strict=True):
        x_0, level = PUBLIC.images[row : row + 1], level[None]
        x = x_0 + per_image(level, x_0) * own[None]
        if len(expected) < blind * BATCH:
            denoised, scale = denoise(EDM(), partial(unguided, net), x, level), EDM().c_out(level)
        else:
            place = int(guide.drafts.pseudo.group[row]), int(guide.drafts.pseudo.fold[row]), 0
            draft = guide.drafts.closed_forms[place].denoise(x, level)
            scale = guide.error.at(level, torch.full_like(level, guide.drafts.sizes[0]))
            denoised = guided_denoise(EDM(), net, x, level, draft, scale)
        expected.append(float(((denoised - x_0) / scale).detach().square().mean()))
    found = loss_of(net, guide, rows, sigma, noise, generator(0, "level"))
    assert float(found.detach()) == pytest.approx(sum(expected) / BATCH, rel=1e-4)


def test_without_its_residual_the_network_is_shown_the_draft_alone() -> None:
    guide, net = Guide.fit(Way(rank=8, sizes=(), residual=False), PUBLIC), network()
    x, time, shown = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 500.0]), torch.randn(2, 2, 8, 8)
    expected = net(x, time, guide=torch.cat([shown[:, :1], torch.zeros(2, 1, 8, 8)], dim=1))
    assert torch.equal(guide.shown(net)(x, time, guide=shown), expected)


def mixture() -> Gaussians:
    """Return three Gaussians in 16 dimensions that overlap."""
    return Gaussians.fit(blobs()[:, :, :4, :4].double() * 0.5, seed=0, rank=5, clusters=3, images_per_cluster=20)


def test_what_a_closed_form_knows_of_an_image() -> None:
    """Oracles: Tweedie's second order, Cov[x_0 | x] = sigma^2 dD/dx, and sums over the components in words."""
    form, x, sigma = mixture(), torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0.4, 1.5]).double()
    for one, level, found in zip(x, sigma, deviation(form, x, sigma), strict=True):

        def denoised(flat: Tensor, level: Tensor = level) -> Tensor:
            return form.denoise(flat.reshape(1, 1, 4, 4), level[None]).flatten()

        slope = jacobian(denoised, one.flatten()).diagonal()
        assert torch.allclose(found.flatten().square(), level.square() * slope, rtol=1e-8)
    weight = form.explain(x, sigma)[0].softmax(0)[..., None, None, None]
    parts = [{name: tensor[k : k + 1] for name, tensor in form.tensors().items()} for k in range(len(form.mean))]
    means = torch.stack([Gaussians.from_tensors(part, form.shape).denoise(x, sigma) for part in parts])
    expected = (weight * means.square()).sum(0) - (weight * means).sum(0).square()
    assert len(parts) > 1
    assert torch.allclose(between(form, x, sigma).square(), expected, atol=1e-12)


@pytest.mark.parametrize("known", ["between", "deviation"])
def test_what_it_knows_is_shown_in_units_of_the_drafts_error(known: str) -> None:
    """Oracle: the loss by hand, of the form that was fitted without the image; and as it is measured."""
    guide = Guide.fit(Way(rank=8, sizes=(), known=known), PUBLIC)
    net = OurConvNet(8, 1, guided=True, features=8, dilations=(1,), width=16)
    widen(net)
    net.initialize(generator(0, "test"))
    nn.init.normal_(net.leave.weight, generator=generator(1))
    rows, sigma, noise = drawn(guide)
    expected = []
    for row, level, own in zip(rows.tolist(), sigma, noise, strict=True):
        x_0, level = PUBLIC.images[row : row + 1], level[None]
        x = x_0 + per_image(level, x_0) * own[None]
        form = guide.drafts.closed_forms[int(guide.drafts.pseudo.group[row]), int(guide.drafts.pseudo.fold[row]), 0]
        scale = guide.error.at(level, torch.full_like(level, guide.drafts.sizes[0]))
        draft, plane = form.denoise(x, level), KNOWLEDGE[known](form, x, level) / scale
        shown = torch.cat([draft, (x - draft) / level, plane], dim=1)
        denoised = draft + scale * net(EDM().c_in(level) * x, EDM().c_noise(level), guide=shown)
        assert torch.allclose(guide.finish(net, form, guide.drafts.sizes[0], x, level), denoised, atol=1e-6)
        expected.append(float(((denoised - x_0) / scale).detach().square().mean()))
    found = loss_of(net, guide, rows, sigma, noise, generator(0, "level"))
    assert float(found.detach()) == pytest.approx(sum(expected) / BATCH, rel=1e-4)


def test_training_lowers_the_error_and_repeats() -> None:
    guide = Guide.fit(SMALL, PUBLIC)
    trained = [network(), network()]
    for one in trained:
        train(one, guide, steps=30, rate=1e-2, batch=BATCH)
    first, second = (one.state_dict() for one in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows, sigma, noise = drawn(guide)
    fresh = network()
    fresh.initialize(generator(SMALL.seed, "guides", "start"))
    with torch.no_grad():
        before, after = (loss_of(one, guide, rows, sigma, noise, generator(1)) for one in (fresh, trained[0]))
    assert after < before


def test_errors_are_those_of_the_closed_form_where_the_network_adds_nothing() -> None:
    guide, net = Guide.fit(SMALL, PUBLIC), network()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    found = guides.errors_of(guide, net, PUBLIC.images[:100], PUBLIC.images[100:])
    assert found["guided, all"] == found["closed form, all"]
    assert found["guided, 20"] == found["closed form, 20"] != found["closed form, all"]


def test_the_table_divides_by_the_first_way() -> None:
    def errors(factor: float) -> dict[str, dict[str, list[float]]]:
        names = ["guided, all", *(f"guided, {n}" for n in guides.FEW)]
        return {"mse": {name: [factor * (i + 1) for i in range(len(guides.SIGMAS))] for name in names}}

    lines = guides.summary({guides.BASE: errors(0.5), "rank 16": errors(0.75)}).splitlines()
    assert lines[0].startswith("| way | 2 | 1 |")
    assert lines[2].split(" | ")[1:3] == ["0.50000", "1.00000"]
    assert set(lines[3].strip("| ").split(" | ")[1:]) == {"1.500"}


def test_ways_differ_from_the_first() -> None:
    ways = list(guides.WAYS.values())
    assert all(ways.count(way) == 1 for way in ways)
    assert equal(*(Guide.fit(SMALL, PUBLIC).closed_form for _ in range(2)))


def uvit(parts: str) -> UViT:
    made = UViT(8, 1, guided=True, patch_size=4, width=16, depth=3, heads=2)
    take_parts(made, parts)
    made.initialize(generator(0, "test"))
    return made


def test_a_network_has_the_parts_that_it_is_named_for() -> None:
    """After some steps, the part that is left out adds nothing to F, and the other does."""
    x, time = torch.randn(4, 1, 8, 8, generator=generator("x")), torch.full((4,), 0.3)
    guide, wanted = torch.cat([x, -x], 1), torch.randn(4, 1, 8, 8, generator=generator("wanted"))
    for parts in (BOTH, TRANSFORMER, HEAD, DEEP):
        made = uvit(parts)
        train_network(
            made, lambda _, made=made: (made(x, time, guide=guide) - wanted).square().mean(), steps=5, rate=0.1
        )
        whole = made(x, time, guide=guide)
        embedding = sinusoidal_embedding(time, made.width)
        head = 0 * x if made.guide_head is None else made.guide_head(torch.cat([x, guide], 1), embedding)
        assert bool(head.any()) == (parts != TRANSFORMER)
        assert bool((whole - head).abs().max() > 1e-3) == (parts != HEAD)


def test_the_deeper_head_sees_ten_pixels_to_each_side() -> None:
    head = DeepHead(1, 8)
    head.initialize(generator(0))
    nn.init.ones_(head.net.leave.weight)
    seen = torch.randn(1, 3, 31, 31, generator=generator("x"), requires_grad=True)
    (gradient,) = torch.autograd.grad(head(seen, torch.zeros(1, 8))[0, 0, 15, 15], seen)
    reached = gradient[0].abs().sum(0).nonzero()
    assert reached.amin(0).tolist() == [5, 5]
    assert reached.amax(0).tolist() == [25, 25]
