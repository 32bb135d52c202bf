"""Out-of-fold drafts, and what is fitted on `public`. Oracles: bytes with one image changed, loops, numpy."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cdm_lightning import pseudo_sources as module
from cdm_lightning.drafts import DraftError, Drafts, denoising_errors
from cdm_lightning.errors import BadInput
from cdm_lightning.evidence import Calibration
from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.pseudo_sources import FOLDS, PseudoSources, folds_of
from cdm_lightning.public import TEMPERATURES, Public, fit_calibration, fit_public, judged_forms
from cdm_lightning.seeding import generator

SHAPE = (1, 8, 8)
RANK = 8
STRENGTH = Strength(1.0, 10.0)
KEYS = tuple(f"image{k:03d}" for k in range(120))
LABELS = tuple("round" if k % 2 else "flat" for k in range(120))


def blobs(labels: tuple[str, ...] = LABELS, seed: int = 0) -> Tensor:
    """Return one bright blob per image, round or flat, somewhere near the middle."""
    g = torch.Generator().manual_seed(seed)
    place = torch.linspace(-1, 1, 8)
    images = []
    for label in labels:
        x, y, size = (0.3 * torch.randn(3, generator=g)).tolist()
        height = (0.4 if label == "round" else 0.15) * math.exp(size)
        square = ((place - x) / 0.4)[None, :] ** 2 + ((place - y) / height)[:, None] ** 2
        images.append(2 * torch.exp(-square) - 1)
    return torch.stack(images)[:, None]


def pseudo_sources(images: Tensor) -> PseudoSources:
    return PseudoSources.cut(images, KEYS, LABELS, seed=0)


def fit_drafts(pseudo: PseudoSources, sizes: tuple[int, ...] = (20, 47)) -> Drafts:
    priors = [Gaussians.fit(pseudo.without_group(g), seed=g, rank=RANK) for g in pseudo.groups()]
    return Drafts.fit(pseudo, priors, STRENGTH, RANK, sizes)


@pytest.fixture(scope="module")
def fitted() -> tuple[Public, Drafts]:
    return fit_public(pseudo_sources(blobs()), seed=0, rank=RANK, sigma_switch=1.0)


def equal(one: Gaussians, other: Gaussians) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def places(drafts: Drafts) -> Iterator[tuple[int, int, int]]:
    assert len(drafts.closed_forms) == len(drafts.pseudo.groups()) * FOLDS * len(drafts.sizes)
    yield from drafts.closed_forms


@pytest.mark.parametrize("changed", [0, 1, 40, 77])
def test_no_image_is_guided_by_a_closed_form_that_has_seen_it(changed: int) -> None:
    images = blobs()
    before = fit_drafts(pseudo_sources(images))
    other = images.clone()
    other[changed] = -other[changed]
    after = fit_drafts(pseudo_sources(other))
    own_group, own_fold = int(before.pseudo.group[changed]), int(before.pseudo.fold[changed])
    differs = {place: not equal(before.closed_forms[place], after.closed_forms[place]) for place in places(before)}
    for level in range(len(before.sizes)):
        assert not differs[own_group, own_fold, level]
        assert any(differs[own_group, fold, level] for fold in range(FOLDS) if fold != own_fold) or level == 0
    assert all(differs[own_group, fold, 1] for fold in range(FOLDS) if fold != own_fold)  # the largest see all others
    assert any(differs[1 - own_group, fold, 1] for fold in range(FOLDS))  # whose prior is this group


def test_drafts_denoise_by_the_closed_form_of_the_images_own_group_and_fold() -> None:
    drafts = fit_drafts(pseudo_sources(blobs()))
    keys = ["image005", "image110", "image004", "image005", "image063"]
    rows = drafts.rows_of(keys)
    assert rows.tolist() == [5, 110, 4, 5, 63]
    g = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(5, *SHAPE, generator=g), torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0])
    for level in range(2):
        denoised = drafts.denoise(rows, level, x, sigma)
        for k, row in enumerate(rows.tolist()):
            place = int(drafts.pseudo.group[row]), int(drafts.pseudo.fold[row]), level
            expected = drafts.closed_forms[place].denoise(x[k : k + 1], sigma[k : k + 1])[0]
            torch.testing.assert_close(denoised[k], expected, rtol=0, atol=1e-5)


def test_groups_are_labels_and_folds_are_even() -> None:
    pseudo = pseudo_sources(blobs())
    assert pseudo.group.tolist() == [k % 2 for k in range(120)]  # 'flat' comes before 'round'
    counts = torch.bincount(PseudoSources.whole(torch.zeros(2000, *SHAPE), [f"k{k}" for k in range(2000)]).fold)
    assert len(counts) == FOLDS
    assert (counts - 500).abs().max() < 4 * math.sqrt(2000 * 0.25 * 0.75)


def test_folds_and_choices_survive_the_removal_of_an_image() -> None:
    images = blobs()
    before = pseudo_sources(images)
    gone = next(k for k in range(120) if torch.equal(images[k], before.outside_fold(0, 0, 20)[0]))
    kept = [k for k in range(120) if k != gone]
    after = PseudoSources.cut(images[kept], [KEYS[k] for k in kept], [LABELS[k] for k in kept], seed=0)
    assert torch.equal(after.fold, before.fold[kept])
    assert torch.equal(after.group, before.group[kept])
    chosen = 0
    for group in range(2):
        for fold in range(FOLDS):
            one, other = before.outside_fold(group, fold, 20), after.outside_fold(group, fold, 20)
            left_out = [image for image in one if not any(torch.equal(image, its) for its in other)]
            assert len(one) == len(other) == 20
            assert len(left_out) <= 1
            assert not left_out or torch.equal(left_out[0], images[gone])
            chosen += len(left_out)
    assert chosen > 0


def test_choices_do_not_depend_on_the_order_of_the_images() -> None:
    images, order = blobs(), torch.randperm(120, generator=torch.Generator().manual_seed(1)).tolist()
    turned = PseudoSources.cut(images[order], [KEYS[k] for k in order], [LABELS[k] for k in order], seed=0)
    straight = pseudo_sources(images)
    assert torch.equal(turned.outside_fold(1, 2, 20), straight.outside_fold(1, 2, 20))
    assert torch.equal(turned.without_group(0), straight.without_group(0))


def test_drafts_are_fitted_outside_their_fold_and_group() -> None:
    pseudo = pseudo_sources(torch.arange(120.0).reshape(120, 1, 1, 1).expand(-1, *SHAPE))
    for group in range(2):
        for fold in range(FOLDS):
            outside = pseudo.outside_fold(group, fold, 1000)[:, 0, 0, 0].long()
            inside = pseudo.inside_fold(group, fold, 1000)[:, 0, 0, 0].long()
            assert (pseudo.fold[outside] != fold).all()
            assert sorted(outside.tolist() + inside.tolist()) == list(range(group, 120, 2))
        assert sorted(pseudo.without_group(group)[:, 0, 0, 0].long().tolist()) == list(range(1 - group, 120, 2))


def test_sizes_are_those_that_every_group_can_give_and_the_largest() -> None:
    pseudo = pseudo_sources(blobs())
    counts = [len(pseudo.outside_fold(g, f, 1000)) for g in range(2) for f in range(FOLDS)]
    assert 20 < min(counts) < 100
    assert pseudo.sizes() == [20, max(counts)]


def test_one_class_is_cut_into_clusters() -> None:
    pseudo = PseudoSources.cut(torch.cat([blobs()[:60] - 3, blobs()[:60] + 3]), KEYS, ["one"] * 120, seed=0)
    assert len(pseudo.group[:60].unique()) == len(pseudo.group[60:].unique()) == 1
    assert pseudo.group[0] != pseudo.group[60]


@pytest.mark.parametrize("n", [40, 60, 99])
def test_one_small_class_is_cut_too(n: int) -> None:
    """Of one pseudo-source nothing could be learned about telling sources apart."""
    images = torch.cat([blobs()[: n // 2] - 3, blobs()[: n - n // 2] + 3])
    pseudo = PseudoSources.cut(images, KEYS[:n], ["one"] * n, seed=0)
    assert torch.bincount(pseudo.group).sort().values.tolist() == sorted([n // 2, n - n // 2])


def test_small_classes_are_pooled_so_that_every_pseudo_source_has_images() -> None:
    labels = ["big"] * 60 + ["small"] * 19 + ["tiny"] * 2 + ["middle"] * 39
    pseudo = PseudoSources.cut(blobs(), KEYS, labels, seed=0)
    assert torch.bincount(pseudo.group).tolist() == [60, 39, 21]
    labels = ["big"] * 60 + ["tiny"] * 2 + ["middle"] * 58
    counts = torch.bincount(PseudoSources.cut(blobs(), KEYS, labels, seed=0).group)
    assert counts.min() >= 20
    assert counts.sum() == 120


def test_a_public_of_too_few_images_is_refused() -> None:
    with pytest.raises(BadInput, match="public has 39 images; the backbone needs at least 40"):
        PseudoSources.cut(blobs()[:39], KEYS[:39], LABELS[:39], seed=0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_source_of_few_images_has_drafts(n: int) -> None:
    pseudo, prior = PseudoSources.whole(blobs()[:n], KEYS[:n]), Gaussians.fit(blobs(), seed=0, rank=RANK)
    drafts = Drafts.fit(pseudo, [prior], STRENGTH, RANK, [max(pseudo.sizes())])
    denoised = drafts.denoise(torch.arange(n), 0, blobs()[:n], torch.ones(n))
    assert denoised.isfinite().all()
    if n == 1:
        torch.testing.assert_close(denoised, prior.denoise(blobs()[:1], torch.ones(1)), rtol=0, atol=1e-5)


def test_draft_error_is_the_error_of_each_image_under_the_draft_without_it() -> None:
    drafts = fit_drafts(pseudo_sources(blobs()))
    error = drafts.error(seed=4)
    assert error.size.tolist() == [20, 47]
    assert error.sigma[[0, -1]].tolist() == pytest.approx([0.002, 80.0], rel=1e-5)
    level = 9
    for size in range(2):
        squares = []
        for group in range(2):
            for fold in range(FOLDS):
                x_0 = drafts.pseudo.inside_fold(group, fold, 24)
                noise = torch.randn(x_0.shape, generator=generator(4, "public", "error", group, fold))
                closed_form = drafts.closed_forms[group, fold, size]
                for k in range(len(x_0)):
                    x = x_0[k : k + 1] + error.sigma[level] * noise[k : k + 1]
                    denoised = closed_form.denoise(x, error.sigma[level : level + 1])
                    squares.append(float((denoised - x_0[k : k + 1]).square().mean()))
        assert len(squares) == 120
        assert float(error.error[size, level]) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-4)


def test_denoising_errors_of_a_point_are_its_distances() -> None:
    image = blobs()[:1]
    errors = denoising_errors(
        Gaussians.fit(image, seed=0, rank=4), blobs()[5:7], blobs()[7:9], torch.tensor([0.1, 3.0])
    )
    expected = (image - blobs()[5:7]).square().mean()
    torch.testing.assert_close(errors, expected.expand(2), rtol=1e-4, atol=1e-6)


def twofold_interpolation(error: DraftError, sigma: float, n: float) -> float:
    log_error = error.error.double().log().numpy()
    by_size = [np.interp(math.log(sigma), error.sigma.double().log().numpy(), row) for row in log_error]
    return math.exp(np.interp(math.log(n), error.size.double().log().numpy(), by_size))


def test_draft_error_between_its_points_is_linear_in_the_logarithms() -> None:
    g = torch.Generator().manual_seed(0)
    error = DraftError(
        torch.tensor([20.0, 100.0, 500.0], dtype=torch.float64),
        torch.logspace(-2, 2, 7, dtype=torch.float64),
        0.01 + torch.rand(3, 7, generator=g, dtype=torch.float64),
    )
    sigma = torch.tensor([1e-4, 0.01, 0.03, 1.0, 7.7, 100.0, 1e5] * 5, dtype=torch.float64)
    n = torch.tensor([1, 20, 45, 100, 501] * 7, dtype=torch.float64)
    expected = [twofold_interpolation(error, *pair) for pair in zip(sigma.tolist(), n.tolist(), strict=True)]
    torch.testing.assert_close(error.at(sigma, n), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    integer = error.at(sigma, n.long())
    torch.testing.assert_close(integer, error.at(sigma, n), rtol=0, atol=0)


def test_draft_error_of_one_size_does_not_look_at_n() -> None:
    error = DraftError(torch.tensor([50.0]), torch.tensor([0.1, 10.0]), torch.tensor([[0.2, 0.8]]))
    at = error.at(torch.tensor([0.1, 1.0, 10.0]), torch.tensor([1.0, 50.0, 9999.0]))
    torch.testing.assert_close(at, torch.tensor([0.2, 0.4, 0.8]), rtol=1e-6, atol=0)


def test_each_size_is_drawn_twice_as_often_as_the_next_smaller_one() -> None:
    drafts = Drafts(PseudoSources.whole(blobs()[:1], KEYS[:1]), (20, 100, 500), {})
    draw = torch.Generator().manual_seed(0)
    counts = np.bincount([drafts.draw_level(draw) for _ in range(4000)])
    for count, share in zip(counts, (1 / 7, 2 / 7, 4 / 7), strict=True):
        assert abs(count / 4000 - share) < 3.5 * math.sqrt(share * (1 - share) / 4000)


def test_what_is_fitted_on_public_is_a_function_of_public_alone(fitted: tuple[Public, Drafts]) -> None:
    torch.manual_seed(99)
    Gaussians.fit(blobs(seed=1), seed=1)
    before = torch.get_rng_state()
    again, drafts = fit_public(pseudo_sources(blobs()), seed=0, rank=RANK, sigma_switch=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in fitted[0].tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    for place in places(drafts):
        assert equal(drafts.closed_forms[place], fitted[1].closed_forms[place])


def test_public_tensors_and_from_tensors_are_inverse(fitted: tuple[Public, Drafts]) -> None:
    public = fitted[0]
    again = Public.from_tensors(public.tensors(), SHAPE)
    assert (again.strength, again.sigma_switch, again.rank) == (public.strength, 1.0, RANK)
    assert again.calibration.floor == public.calibration.floor
    assert again.closed_form.shape == SHAPE
    assert again.tensors().keys() == public.tensors().keys()
    for name, tensor in public.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_public_keeps_an_endless_switch() -> None:
    table = torch.ones(1, 1)
    public = Public(
        Gaussians.fit(blobs(), seed=0, rank=RANK),
        STRENGTH,
        DraftError(table[0], table[0], table),
        Calibration.none(),
        math.inf,
        RANK,
    )
    assert Public.from_tensors(public.tensors(), SHAPE).sigma_switch == math.inf


def test_what_is_fitted_on_public_is_sound(fitted: tuple[Public, Drafts]) -> None:
    public, drafts = fitted
    assert drafts.sizes == (20, max(drafts.pseudo.sizes()))
    error = public.error.error
    assert error.isfinite().all()
    assert (error > 0).all()
    assert (error[:, 0] < 0.01).all()  # at sigma 0.002 a draft is nearly right
    assert (error[-1] <= error[0] * 1.05).all()  # and more images make better drafts
    assert (public.calibration.sigma.diff() > 0).all()
    assert (public.calibration.temperature >= 1).all()
    assert public.calibration.floor in public.calibration.sigma.tolist()


def test_prior_images_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRIOR_IMAGES", 15)
    pseudo = pseudo_sources(blobs())
    assert len(pseudo.without_group(0)) == 15


def one_class_with_an_outlier() -> PseudoSources:
    """Return dark images of one class and a white one, which is a cluster by itself."""
    g = torch.Generator().manual_seed(0)
    images = 0.1 * torch.rand(120, *SHAPE, generator=g) - 1
    images[FOLD_0] = 1.0
    return PseudoSources.cut(images, KEYS, ["one"] * 120, seed=0)


FOLD_0 = PseudoSources.whole(torch.zeros(120, *SHAPE), KEYS).fold.tolist().index(0)


def test_a_public_of_one_class_may_have_an_outlier() -> None:
    public, _ = fit_public(one_class_with_an_outlier(), seed=0, rank=RANK, sigma_switch=1.0)
    assert public.error.error.isfinite().all()


def test_a_small_pseudo_source_leaves_the_others_their_small_drafts() -> None:
    assert 20 in one_class_with_an_outlier().sizes()


@pytest.mark.parametrize("switch", [0.02, 0.01])
def test_calibration_levels_rise_for_any_switch(fitted: tuple[Public, Drafts], switch: float) -> None:
    calibration = fit_calibration(fitted[1].pseudo, STRENGTH, seed=0, rank=RANK, sigma_switch=switch)
    assert (calibration.sigma.diff() > 0).all()
    assert calibration.temperature_at(torch.tensor([0.005, 0.02])).isfinite().all()


@pytest.mark.parametrize("switch", [1.0, 3.0])
def test_the_floor_is_a_level_at_which_evidence_is_tempered(switch: float) -> None:
    """Pseudo-sources that do not differ are best told apart at most noise, but at the switch nothing is tempered."""
    images = 0.3 * torch.randn(120, *SHAPE, generator=generator(0))
    pseudo = PseudoSources.cut(images, KEYS, LABELS, seed=0)
    calibration = fit_calibration(pseudo, STRENGTH, seed=0, rank=RANK, sigma_switch=switch)
    assert calibration.floor == pytest.approx(float(calibration.sigma[-2]))
    assert calibration.floor < switch


def test_evidence_is_calibrated_by_closed_forms_that_have_not_seen_the_judged_images() -> None:
    pseudo = pseudo_sources(blobs())
    changed = pseudo.images.clone()
    changed[pseudo.fold == 0] = 0.0
    others = PseudoSources(changed, pseudo.keys, pseudo.group, pseudo.fold)
    forms, again = (judged_forms(parts, STRENGTH, seed=0, rank=RANK) for parts in (pseudo, others))
    for form, same in zip(forms, again, strict=True):
        for name, tensor in form.tensors().items():
            assert torch.equal(tensor, same.tensors()[name]), name


@pytest.mark.parametrize("sigma", [0.15, 0.2, 0.6])  # not below the floor
def test_the_temperature_is_nearly_the_best_one_for_fresh_images(sigma: float) -> None:
    strong, pseudo = Strength(10.0, 300.0), pseudo_sources(blobs())
    calibration = fit_calibration(pseudo, strong, seed=0, rank=RANK, sigma_switch=1.0)
    forms = judged_forms(pseudo, strong, seed=0, rank=RANK)
    fresh, true = blobs(seed=9), torch.tensor([int(label == "round") for label in LABELS])
    level = torch.full((120,), sigma)
    x = fresh + sigma * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(1))
    density = torch.stack([form.log_density(x, level) for form in forms])

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy((density / temperature).T, true))

    best = min(loss(temperature) for temperature in TEMPERATURES.tolist())
    assert loss(float(calibration.temperature_at(level)[0])) < best + 0.1


def test_all_folders_of_a_class_are_measured_on() -> None:
    """In turns, whatever their names; where there is one folder, the first images in the order of their keys."""
    keys = [f"public-{folder}-cat-{k:03d}" for folder in ("a", "b", "c") for k in range(200)]
    images = torch.arange(600.0).reshape(-1, 1, 1, 1)
    pseudo = PseudoSources(images, tuple(keys), torch.zeros(600, dtype=torch.long), folds_of(keys))
    for fold in range(FOLDS):
        own = [row for row in range(600) if int(pseudo.fold[row]) == fold]
        found = pseudo.inside_fold(0, fold, 24).flatten().long().tolist()
        by_folder = [[row for row in own if row // 200 == folder] for folder in range(3)]
        assert sorted(found) == sorted(row for mine in by_folder for row in mine[:8])
        assert sorted(pseudo.inside_fold(0, fold, 600).flatten().long().tolist()) == own
    one_of_each = tuple(f"{'abcdefghijkl'[k % 12]}-x-{k}" for k in range(240))
    many = PseudoSources(images[:240], one_of_each, torch.zeros(240, dtype=torch.long), folds_of(one_of_each))
    assert len({one_of_each[int(row)][0] for row in many.inside_fold(0, 0, 12).flatten()}) == 12


def test_sizes_are_all_different() -> None:
    group, fold = torch.tensor([0] * 100 + [1] * 30), torch.tensor([0] * 100 + [1] * 30)
    pseudo = PseudoSources(torch.zeros(130, 1, 2, 2), tuple(f"k{k}" for k in range(130)), group, fold)
    assert pseudo.sizes() == [20, 100]


def test_a_small_class_says_how_few_images_are_behind_its_drafts() -> None:
    """Oracle: loops over the groups that can give about so many images; by hand behind the drafts."""
    keys = tuple(f"image{k:03d}" for k in range(400))
    labels = tuple("flat" if k % 10 == 0 else "round" for k in range(400))
    pseudo = PseudoSources.cut(blobs(labels), keys, labels, seed=0)
    drafts = fit_drafts(pseudo, (20, 100, 250))
    small = int(pseudo.group[0])
    counts = {fold: int(((pseudo.group == small) & (pseudo.fold != fold)).sum()) for fold in range(FOLDS)}
    assert 20 < min(counts.values()) <= max(counts.values()) < 50
    for level, size in enumerate(drafts.sizes):
        n = drafts.behind(torch.arange(400), level)
        for row in range(400):
            few = pseudo.group[row] == small and level > 0
            assert n[row] == (counts[int(pseudo.fold[row])] if few else size)
    error = drafts.error(0)
    for level in (1, 2):
        square, images = torch.zeros(len(error.sigma), dtype=torch.float64), 0
        for fold in range(FOLDS):
            x_0 = pseudo.inside_fold(1 - small, fold, 24)
            noise = torch.randn(x_0.shape, generator=generator(0, "public", "error", 1 - small, fold))
            form = drafts.closed_forms[1 - small, fold, level]
            square += denoising_errors(form, x_0, noise, error.sigma).double() * len(x_0)
            images += len(x_0)
        torch.testing.assert_close(error.error[level], (square / images).sqrt().float())
