"""Frechet distance and KID of half-samples: the replicates that the intervals of a score are made of."""

import torch
from torch import Tensor

from cdm_lightning.intervals import HalfSamples

ROWS = 1024  # of a kernel matrix at a time


def frechet_of_features(generated: Tensor, reference: Tensor) -> float:
    """Return `cdm_lightning.metrics.frechet_distance` from the features themselves, several times as fast.

    With centred features A and B, divided by the root of their number less one, the covariances are A^T A and B^T B,
    and tr (A^T A B^T B)^(1/2) is the sum of the singular values of A B^T.

    Args:
        generated: features [n, dimension], n at least 2.
        reference: features [m, dimension], m at least 2.
    """
    (mean, one), (other_mean, other) = _centred(generated), _centred(reference)
    few, many = (one, other) if len(one) <= len(other) else (other, one)
    if len(few) > few.shape[1]:
        few = torch.linalg.qr(few, mode="r")[1]
    traces = one.square().sum() + other.square().sum()
    return float((mean - other_mean).square().sum() + traces - 2 * _singular_sum(few @ many.T))


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    exact = features.double()
    mean = exact.mean(0)
    return mean, (exact - mean) / (len(exact) - 1) ** 0.5


def _singular_sum(matrix: Tensor) -> Tensor:
    """Return the sum of the singular values, as roots of the eigenvalues of the smaller of the two products."""
    few = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    squares: Tensor = torch.linalg.eigvalsh(few @ few.T).clamp_min(0)
    return squares.sqrt().sum()


def frechet_replicates(generated: Tensor, reference: Tensor, halves: HalfSamples) -> Tensor:
    """Return the Frechet distance [repeat] of every half-sample, float64; features are [n, dimension]."""
    pairs = list(zip(halves.generated, halves.reference, strict=True))
    if min(halves.generated.shape[1], halves.reference.shape[1]) > generated.shape[1]:
        found = [frechet_of_features(generated[one], reference[other]) for one, other in pairs]
        return torch.tensor(found, dtype=torch.float64)
    centre = reference.double().mean(0)
    x, y = generated.double() - centre, reference.double() - centre
    products = x @ y.T  # of all images: those of a half-sample are some of them
    (mean, trace), (other_mean, other_trace) = _moments(x, halves.generated), _moments(y, halves.reference)
    roots = [_singular_sum(_twice_centred(products[one][:, other])) for one, other in pairs]
    return (mean - other_mean).square().sum(1) + trace + other_trace - 2 * torch.stack(roots)


def _moments(features: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [repeat, dimension] and trace of the covariance [repeat] of every half-sample."""
    n = chosen.shape[1]
    mean = _indicator(chosen, len(features)) @ features / n
    squares = features.square().sum(1)[chosen].sum(1)
    return mean, (squares - n * mean.square().sum(1)) / (n - 1)


def _twice_centred(products: Tensor) -> Tensor:
    """Return A B^T of centred features, each divided by the root of its number less one, from X Y^T of any."""
    rows, columns = products.mean(1, keepdim=True), products.mean(0, keepdim=True)
    n, m = products.shape
    centred: Tensor = (products - rows - columns + products.mean()) / ((n - 1) * (m - 1)) ** 0.5
    return centred


def kid_replicates(generated: Tensor, reference: Tensor, halves: HalfSamples) -> Tensor:
    """Return MMD^2 [repeat] of every half-sample, unbiased, with the kernel of `cdm_lightning.metrics.kid`, float64."""
    one, other = _indicator(halves.generated, len(generated)), _indicator(halves.reference, len(reference))
    k, m = halves.generated.shape[1], halves.reference.shape[1]
    within = (_kernel_sums(generated, generated, one, one) - _own_kernel(generated, one)) / (k * (k - 1))
    within_other = (_kernel_sums(reference, reference, other, other) - _own_kernel(reference, other)) / (m * (m - 1))
    return within + within_other - 2 * _kernel_sums(generated, reference, one, other) / (k * m)


def _indicator(chosen: Tensor, n: int) -> Tensor:
    """Return 1 [repeat, n] where an image is in the half-sample, 0 elsewhere."""
    return torch.zeros(len(chosen), n, dtype=torch.float64).scatter(1, chosen, 1.0)


def _kernel_sums(one: Tensor, other: Tensor, inside: Tensor, inside_other: Tensor) -> Tensor:
    """Return sum_ij s_i k(x_i, y_j) t_j [repeat] for the indicators s [repeat, n] and t [repeat, m]."""
    total = torch.zeros(len(inside), dtype=torch.float64)
    for rows, chosen in zip(one.double().split(ROWS), inside.split(ROWS, dim=1), strict=True):
        kernel = (rows @ other.double().T / one.shape[1] + 1) ** 3
        total += ((chosen @ kernel) * inside_other).sum(1)
    return total


def _own_kernel(features: Tensor, inside: Tensor) -> Tensor:
    """Return sum_i s_i k(x_i, x_i) [repeat]."""
    return inside @ (features.double().square().sum(1) / features.shape[1] + 1) ** 3
