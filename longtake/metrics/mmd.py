"""Maximum mean discrepancy with a cubic kernel: the mathematics of KID and KVD.

k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018). The estimators are named: "unbiased" leaves out the diagonals,
so it may be negative and needs no correction for N; "biased" takes all pairs. Of clips that share videos only
`video_mmd` is unbiased. Float64.
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


class VideoMMD(NamedTuple):
    """MMD between videos that give several clips each."""

    value: float
    resampled: np.ndarray
    """(R,) values of bootstrap resamples of the videos."""


def video_mmd(
    a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray, resamples: int = 0, seed: int = 0
) -> VideoMMD:
    """Unbiased squared MMD of clips of which several may come from one video; with one each, `polynomial_mmd`.

    Clips of one video are alike however different videos are, so within a sample their pairs are left out, and not
    the diagonal alone. A resample draws videos with repetition; a video is not paired with its copies either.

    Args:
        a, b: features (M, D), (N, D).
        of_a, of_b: the video of each row, (M,) and (N,); at least two different ones each.
        resamples: of the bootstrap. Those that draw one and the same video all the time are left out.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    x, y = _Sample.of(a, of_a, resamples, rng), _Sample.of(b, of_b, resamples, rng)
    cross = 2 * _weighted_sums(x, y) / (x.weights @ x.counts * (y.weights @ y.counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = _weighted_sums(x, x) / x.pairs + _weighted_sums(y, y) / y.pairs - cross
    return VideoMMD(float(values[0]), values[1:][np.isfinite(values[1:])])


class _Sample(NamedTuple):
    """Clips in the order of their videos, and how often each resample holds each of V videos."""

    clips: np.ndarray
    video: np.ndarray
    """(N,) numbers 0 .. V-1, ascending."""
    counts: np.ndarray
    """(V,) clips of each."""
    weights: np.ndarray
    """(1 + R, V); the first row is all ones: the sample itself."""

    @staticmethod
    def of(clips: np.ndarray, of: np.ndarray, resamples: int, rng: np.random.Generator) -> _Sample:
        names, video, counts = np.unique(of, return_inverse=True, return_counts=True)
        n, order = len(names), np.argsort(video, kind="stable")
        drawn = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(resamples)]
        weights = np.stack([np.ones(n), *drawn])
        return _Sample(np.asarray(clips, np.float64)[order], video[order], counts, weights)

    @property
    def pairs(self) -> np.ndarray:
        """(1 + R,) ordered pairs of clips of different videos."""
        held = self.weights * self.counts
        return held.sum(1) ** 2 - (held * held).sum(1)


def _weighted_sums(x: _Sample, y: _Sample) -> np.ndarray:
    """Sum of k over all pairs of clips in every resample, (1 + R,), in blocks; within a sample those of different
    videos only."""
    total = np.zeros(len(x.weights))
    for i in range(0, len(x.clips), CHUNK):
        for j in range(0, len(y.clips), CHUNK):
            kernel = (x.clips[i : i + CHUNK] @ y.clips[j : j + CHUNK].T / x.clips.shape[1] + 1) ** 3
            rows, row_starts = np.unique(x.video[i : i + CHUNK], return_index=True)
            columns, column_starts = np.unique(y.video[j : j + CHUNK], return_index=True)
            sums = np.add.reduceat(np.add.reduceat(kernel, row_starts, 0), column_starts, 1)
            if x is y:
                sums[rows[:, None] == columns] = 0
            total += ((x.weights[:, rows] @ sums) * y.weights[:, columns]).sum(1)
    return total
