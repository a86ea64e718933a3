"""Maximum mean discrepancy with a cubic kernel: the mathematics of KID and KVD.

k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018). The estimators are named: "unbiased" leaves out the diagonals,
so it may be negative and needs no correction for N; "biased" takes all pairs. Float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CHUNK = 2048


class SubsetMMD(NamedTuple):
    """MMD over random subsets, as KID is reported."""

    mean: float
    std: float
    """Population standard deviation over the subsets: the spread of one subset, not the error of the mean."""
    values: np.ndarray


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of k over all pairs, in blocks so that N * N numbers are never held."""
    total = 0.0
    for i in range(0, len(x), CHUNK):
        for j in range(0, len(y), CHUNK):
            total += float(((x[i : i + CHUNK] @ y[j : j + CHUNK].T / x.shape[1] + 1) ** 3).sum())
    return total


def polynomial_mmd(a: np.ndarray, b: np.ndarray, unbiased: bool = True) -> float:
    """Squared MMD of features (M, D) and (N, D); M, N of at least 2. Not multiplied by 100 or 1000."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    m, n = len(x), len(y)
    xx, yy = _kernel_sum(x, x), _kernel_sum(y, y)
    cross = 2 * _kernel_sum(x, y) / (m * n)
    if not unbiased:
        return xx / m**2 + yy / n**2 - cross
    xx -= float((((x * x).sum(1) / x.shape[1] + 1) ** 3).sum())
    yy -= float((((y * y).sum(1) / y.shape[1] + 1) ** 3).sum())
    return xx / (m * (m - 1)) + yy / (n * (n - 1)) - cross


def subset_mmd(a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0) -> SubsetMMD:
    """Unbiased MMD over `subsets` random pairs of subsets without repetition, of `size` or as many as there are."""
    rng = np.random.default_rng(seed)
    n = min(size, len(a), len(b))
    rows = [(rng.permutation(len(a))[:n], rng.permutation(len(b))[:n]) for _ in range(subsets)]
    return mmd_of_subsets(a, b, rows)


def mmd_of_subsets(a: np.ndarray, b: np.ndarray, rows: list[tuple[np.ndarray, np.ndarray]]) -> SubsetMMD:
    """The same over given row numbers."""
    values = np.array([polynomial_mmd(a[i], b[j]) for i, j in rows])
    return SubsetMMD(float(values.mean()), float(values.std()), values)
