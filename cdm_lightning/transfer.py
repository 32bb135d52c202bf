"""What a continual learner has forgotten: average forgetting and backward transfer of a matrix R[event, source].

The matrix comes as rows, one per event in its order: what was measured of every source that was there. Of accuracies
more is better; of errors less is, and they count with the other sign, so that both read alike: forgetting above 0 is
worse than before, backward transfer above 0 is better.
"""

import math
from collections.abc import Mapping, Sequence

Rows = Sequence[Mapping[str, float]]


def forgetting_by_source(rows: Rows, less_is_better: bool) -> dict[str, float]:
    """Return by how much each source of the last row is worse there than at its best before.

    For accuracies f_s = max_l R[l, s] - R[k, s], l before k (Chaudhry et al. 2018, arXiv 1801.10112, eq. 3); for errors
    R[k, s] - min_l R[l, s]. A source without an earlier row, or without a last one, has none.
    """
    values = _signed(rows, less_is_better)
    return {source: max(before) - now for source, before, now in _earlier(values)}


def backward_transfer_by_source(rows: Rows, less_is_better: bool) -> dict[str, float]:
    """Return by how much each source of the last row is better there than when it arrived, R[k, s] - R[s, s].

    After Lopez-Paz and Ranzato 2017, arXiv 1706.08840, eq. 3; for errors with the other sign.
    """
    values = _signed(rows, less_is_better)
    return {source: now - before[0] for source, before, now in _earlier(values)}


def mean(by_source: Mapping[str, float]) -> float | None:
    """Return the mean over the sources, None if there is none."""
    return math.fsum(by_source.values()) / len(by_source) if by_source else None


def _signed(rows: Rows, less_is_better: bool) -> list[dict[str, float]]:
    sign = -1 if less_is_better else 1
    return [{source: sign * value for source, value in row.items()} for row in rows]


def _earlier(rows: Rows) -> list[tuple[str, list[float], float]]:
    """Return (source, its values in earlier rows, its value in the last row) of every source that has both."""
    if not rows:
        return []
    *past, last = rows
    found = [(source, [row[source] for row in past if source in row], now) for source, now in last.items()]
    return [one for one in found if one[1]]
