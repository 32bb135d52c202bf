"""Closed forms add up. Oracles: the fit of all images at once, dense covariances, sums of densities."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cdm_lightning.gaussians import Gaussians, Strength
from cdm_lightning.merging import groups_for, groups_of, images_behind, images_in, merged, union_of
from tests.test_gaussians import mixture

SHAPE = (1, 3, 4)
DIMENSION = 12


def images(n: int, seed: int = 0, centre: float = 0.0) -> Tensor:
    """Return n images whose pixels hang together, in float64."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIMENSION, DIMENSION, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    flat = centre + 0.3 * torch.randn(n, DIMENSION, generator=g, dtype=torch.float64) @ mixing
    return flat.reshape(n, *SHAPE)


def whole(x_0: Tensor, rank: int = DIMENSION - 1) -> Gaussians:
    """Return one Gaussian of all images, with every direction."""
    return Gaussians.fit(x_0, seed=0, rank=rank, clusters=1)


def covariance(form: Gaussians, k: int = 0) -> Tensor:
    """Return the dense covariance [dimension, dimension] of a cluster."""
    basis, excess = form.basis[k], form.variance[k] - form.rest[k]
    return (basis * excess) @ basis.T + form.rest[k] * torch.eye(DIMENSION, dtype=basis.dtype)


@pytest.mark.parametrize("sizes", [(30, 70), (5, 40, 200), (1, 1, 2)])
def test_one_gaussian_of_each_source_merges_into_the_fit_of_all_images(sizes: tuple[int, ...]) -> None:
    parts = [images(n, seed) for seed, n in enumerate(sizes)]
    union = union_of([whole(part) for part in parts], sizes)
    found = merged(union, sum(sizes), groups_of(union, 1))
    flat = torch.cat(parts).flatten(1)
    torch.testing.assert_close(found.mean[0], flat.mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(found), torch.cov(flat.T, correction=0), rtol=0, atol=1e-8)
    assert found.log_share.tolist() == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 60])
def test_shrinking_after_the_fit_is_shrinking_within_it(n: int) -> None:
    public = Gaussians.fit(images(900, seed=5), seed=0, rank=4, clusters=3)
    strength = Strength(2.0, 7.0)
    x_0 = images(n, seed=1, centre=0.4)
    expected = Gaussians.fit(x_0, seed=0, public=public, strength=strength, rank=DIMENSION - 1, clusters=1)
    found = merged(whole(x_0), n, groups_of(whole(x_0), 1), public, strength)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(covariance(found), covariance(expected), rtol=0, atol=1e-8)


def test_shares_that_are_not_those_of_the_images_do_not_change_how_much_is_shrunk() -> None:
    """As where one source was mixed with more of `public` than the other; oracle: each source by itself."""
    public, strength = whole(images(300, seed=7), rank=3), Strength(5.0, 20.0)
    sizes, shares = (4, 400), (900.0, 100.0)
    forms = [whole(images(n, seed=n, centre=6.0 * k), rank=3) for k, n in enumerate(sizes)]
    fine, group = union_of(forms, shares), torch.arange(2)
    counts = images_in(forms, sizes, group)
    assert counts.tolist() == pytest.approx(sizes)
    found = merged(fine, counts, group, public, strength)
    assert found.log_share.exp().tolist() == pytest.approx([0.9, 0.1])
    for k, n in enumerate(sizes):
        alone = merged(forms[k], n, torch.zeros(1, dtype=torch.long), public, strength)
        torch.testing.assert_close(found.mean[k], alone.mean[0])
        torch.testing.assert_close(covariance(found, k), covariance(alone))


def test_the_union_is_the_mixture_by_numbers_of_images() -> None:
    parts, sizes = [whole(images(40, 1)), whole(images(60, 2, centre=1.0))], [40, 60]
    x, sigma = images(5, 3), torch.full((5,), 0.7, dtype=torch.float64)
    weighed = [math.log(n / 100) + part.log_density(x, sigma) for part, n in zip(parts, sizes, strict=True)]
    torch.testing.assert_close(union_of(parts, sizes).log_density(x, sigma), torch.logaddexp(*weighed))


def test_nothing_is_merged_where_there_are_as_many_groups_as_clusters() -> None:
    fine = Gaussians.fit(images(900, 4), seed=0, rank=5, clusters=3)
    found = merged(fine, 900, groups_of(fine, 3))
    for name, tensor in fine.tensors().items():
        if name != "basis":
            torch.testing.assert_close(found.tensors()[name], tensor, rtol=0, atol=1e-10)
    for k in range(3):
        torch.testing.assert_close(covariance(found, k), covariance(fine, k), rtol=0, atol=1e-10)


def test_clusters_that_are_alike_are_merged_and_others_are_not() -> None:
    near, far = [whole(images(50, seed)) for seed in range(3)], whole(images(50, 9, centre=20.0))
    group = groups_of(union_of([*near, far], [50, 50, 50, 50]), 2)
    assert len(set(group[:3].tolist())) == 1
    assert group[3] != group[0]
    numbers, share = images_behind([*near, far], [50, 60, 70, 80], torch.tensor([0, 2, 1, 3]))  # nothing is shared
    assert numbers.tolist() == [50, 60, 70, 80]
    assert torch.equal(share, torch.eye(4, dtype=torch.float64)[[0, 2, 1, 3]])


def test_images_of_every_source_that_shares_a_group_stand_behind_it() -> None:
    """Two sources are in the same two places and a third is elsewhere: three groups, of which two are shared."""
    places = [torch.cat([images(30, seed), images(30, seed + 10, centre=9.0)]) for seed in range(2)]
    fine = [Gaussians.fit(place, seed=0, rank=5, clusters=2, images_per_cluster=30) for place in places]
    fine.append(whole(images(60, 7, centre=-30.0), rank=5))
    group = groups_of(union_of(fine, [60, 61, 62]), groups_for([60, 61, 62]))
    numbers, share = images_behind(fine, [60, 61, 62], group)
    assert numbers.tolist() == [62, 121]
    assert torch.equal(share[group], torch.tensor([[0.0, 1.0]] * 4 + [[1.0, 0.0]], dtype=torch.float64))


def test_what_is_shared_with_different_neighbours_is_weighed_by_images() -> None:
    """One source is in the first place, one in both, and one in the second."""
    both = union_of([whole(images(30, 1), rank=5), whole(images(30, 2), rank=5)], [10, 30])
    numbers, share = images_behind(
        [whole(images(9, 3)), both, whole(images(9, 4))], [5, 40, 80], torch.tensor([0, 0, 1, 1])
    )
    assert numbers.tolist() == [5 + 40, 40 + 80, 5 + 40 + 80]
    expected = torch.tensor([[5 / 15, 0, 10 / 15], [0, 80 / 110, 30 / 110]], dtype=torch.float64)
    torch.testing.assert_close(share, expected, rtol=0, atol=1e-12)


def test_there_is_a_gaussian_for_250_images_and_at_least_one_for_each_source() -> None:
    assert groups_for([100]) == 1
    assert groups_for([100, 749, 5000]) == 1 + 2 + 20


def test_groups_are_a_function_of_the_clusters() -> None:
    fine = Gaussians.fit(images(900, 4), seed=0, rank=5, clusters=18, images_per_cluster=50)
    first = groups_of(fine, 4)
    assert int(first.max()) == 3
    assert all(torch.equal(groups_of(fine, 4), first) for _ in range(5))


def test_clusters_of_many_images_keep_groups_of_their_own() -> None:
    """By hand: {0, 1}, {2.5} loses 0.5 if all weigh the same; by their shares {0}, {1, 2.5} loses the least."""
    mean = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)[:, None].expand(-1, 12).contiguous() / 12**0.5
    form = mixture(0)
    fine = replace(form, mean=mean, log_share=torch.tensor([0.49, 0.49, 0.02], dtype=torch.float64).log())
    first, second, third = groups_of(fine, 2).tolist()
    assert first != second == third
