"""How close sampled images are to held-out ones, by their features; the numbers are torch-fidelity's own."""

from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from cdm_lightning.errors import BadInput
from cdm_lightning.feature_sums import FeatureSums

KID_SUBSET_SIZE = 1000
NEIGHBOURS = 3


def scores(generated: Tensor, reference: Tensor, sums: FeatureSums, extractor: str, seed: int) -> dict[str, float]:
    """Return every metric under a name that carries N, the number of sampled images, and the extractor.

    The names are `fid@N_inception`, `kid@N_...`, `kid_deviation@N_...`, `precision@N_...` and `recall@N_...`; with
    another extractor than Inception, `frechet@N_...` stands for `fid`. A Frechet distance is biased by N, so compare
    only equal names.

    Args:
        generated: features of the sampled images, float32 [N, dimension].
        reference: features of the held-out images, float32 [n, dimension].
        sums: the sums of `reference`.
        extractor: the name of the extractor.
        seed: of the subsets of KID.

    Raises:
        BadInput: there are fewer than two images on one side.
    """
    check_enough(len(generated), len(reference))
    kid_mean, kid_deviation = kid(generated, reference, seed)
    precision, recall = precision_recall(generated, reference)
    values = {
        "frechet": frechet_distance(FeatureSums.of(generated), sums),
        "kid": kid_mean,
        "kid_deviation": kid_deviation,
        "precision": precision,
        "recall": recall,
    }
    return {score_name(metric, len(generated), extractor): value for metric, value in values.items()}


def score_name(metric: str, n: int, extractor: str) -> str:
    """Return the full name of a metric of n sampled images, seen by this extractor; see `scores`."""
    metric = "fid" if (metric, extractor) == ("frechet", "inception") else metric
    return f"{metric}@{n}_{extractor}"


def check_enough(generated: int, reference: int) -> None:
    """Raise BadInput unless there are at least two images on each side, which every metric needs."""
    if min(generated, reference) < 2:
        raise BadInput(
            f"metrics compare at least 2 sampled with at least 2 held-out images, but there are {generated} and "
            f"{reference}: sample more, or hold out more (heldout_fraction)"
        )


def frechet_distance(generated: FeatureSums, reference: FeatureSums) -> float:
    """Return the Frechet distance of the Gaussians with these means and covariances; of Inception's features, FID.

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, equation 6), in the square
    of the features' unit. Its bias falls with the number of images, so it is comparable only at equal numbers.

    Raises:
        BadInput: there are fewer than two images on one side.
    """
    check_enough(generated.n, reference.n)
    one, other = ({"mu": s.mean().numpy(), "sigma": s.covariance().numpy()} for s in (generated, reference))
    return float(fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID])


def kid(generated: Tensor, reference: Tensor, seed: int) -> tuple[float, float]:
    """Return KID and its deviation: mean and standard deviation of MMD^2 over 100 random subsets of both sides.

    MMD^2 with the kernel (x y / dimension + 1)^3 is unbiased (Binkowski et al. 2018, arXiv 1801.01401), so KID is near
    zero, of either sign, for equal laws at any number of images.

    Args:
        generated: features [n, dimension], float32.
        reference: features [m, dimension], float32.
        seed: of the subsets, 0 to 2^32 - 1.

    Raises:
        BadInput: there are fewer than two images on one side.
    """
    check_enough(len(generated), len(reference))
    size = kid_subset_size(len(generated), len(reference))
    found = kid_features_to_metric(generated, reference, kid_subset_size=size, rng_seed=seed, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]


def kid_subset_size(generated: int, reference: int) -> int:
    """Return 1000, torch-fidelity's number of images per subset, or half of the smaller side, at least 2.

    Subsets of a whole side are all the same and have no deviation. Over halves drawn without replacement, the deviation
    of a mean is its standard error (delete-d jackknife: Shao and Wu 1989, d = n / 2).
    """
    return max(2, min(KID_SUBSET_SIZE, generated // 2, reference // 2))


def precision_recall(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return precision and recall, in [0, 1] (Kynkaanniemi et al. 2019, arXiv 1904.06991).

    Precision is the share of sampled images that lie within a ball around a held-out one, out to its third nearest
    neighbour (fewer, if there are not four images); recall is the same with the sides exchanged.

    Args:
        generated: features [n, dimension], float32.
        reference: features [m, dimension], float32.

    Raises:
        BadInput: there are fewer than two images on one side.
    """
    check_enough(len(generated), len(reference))
    neighbours = min(NEIGHBOURS, len(generated) - 1, len(reference) - 1)
    found = prc_features_to_metric(generated, reference, prc_neighborhood=neighbours, save_cpu_ram=True, verbose=False)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]
