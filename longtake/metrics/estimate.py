"""How far a figure can be trusted: intervals by bootstrap over videos, and the bias of a Frechet distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from longtake.metrics.frechet import Moments, frechet_distance
from longtake.metrics.scores import inception_score

RESAMPLES = 1000
"""Of statistics that cost little."""
LEAST_OF_LINE = 2
"""Videos a feature from which a Frechet distance is taken for a straight line in 1 / N (Chong and Forsyth: 2.4)."""

Interval = tuple[float, float]


def percentiles(resampled: np.ndarray) -> Interval | None:
    """The middle 95 % of a statistic's bootstrap values (R,); None for fewer than two."""
    if len(resampled) < 2:
        return None
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """95 % percentile bootstrap interval of a mean over videos; None for a single one."""
    if len(values) < 2 or not resamples:
        return None
    picks = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return percentiles(np.asarray(values, np.float64)[picks].mean(1))


def median_ratio_interval(
    a: np.ndarray, b: np.ndarray, of_b: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """95 % percentile bootstrap interval of median(a) / median(b), resampling videos on both sides.

    Args:
        a: (N,), one a video.
        b: (M,), above 0 in the median.
        of_b: (M,) the video of each; values of one video are drawn together.
        resamples: how many; those with a median of b of 0 are left out.
        seed: of what is drawn.

    Returns:
        None for a single video in `a`.
    """
    if len(a) < 2:
        return None
    rng, groups = np.random.default_rng(seed), [b[of_b == video] for video in np.unique(of_b)]
    values = []
    for _ in range(resamples):
        above = np.median(a[rng.integers(0, len(a), len(a))])
        below = np.median(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]))
        values.append(above / below if below > 0 else np.nan)
    return percentiles(np.array(values)[np.isfinite(values)])


def inception_interval(probabilities: np.ndarray, splits: int, resamples: int, seed: int = 0) -> Interval | None:
    """Inception score plus and minus 1.96 bootstrap deviations, resampling videos.

    As of a Frechet distance, the bootstrap's own values are no bounds: a resample has fewer different videos, and
    so less variety, than the sample.

    Args:
        probabilities: (N, K), one row a video.
        splits: of the score, which is the mean over them.
        resamples: how many; 0 gives None, as does a single video.
        seed: of what is drawn.
    """
    n = len(probabilities)
    if n < 2 or not resamples:
        return None
    rng = np.random.default_rng(seed)
    values = [inception_score(probabilities[rng.integers(0, n, n)], splits).mean for _ in range(resamples)]
    centre, spread = inception_score(probabilities, splits).mean, 1.96 * float(np.std(values, ddof=1))
    return centre - spread, centre + spread


def frechet_interval(
    a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray, ddof: int, resamples: int, seed: int = 0
) -> Interval | None:
    """Value plus and minus 1.96 bootstrap deviations of a Frechet distance, resampling videos on both sides.

    The bootstrap's own values are not used as bounds: a resample has fewer different videos than the sample, and a
    Frechet distance grows as videos get fewer, so they all lie too high.

    Args:
        a, b: features (M, D), (N, D).
        of_a, of_b: the video of each row; rows of one video are drawn together.
        ddof: of the covariances.
        resamples: how many; 0 gives None.
    """
    if not resamples:
        return None
    rng = np.random.default_rng(seed)
    groups = [[x[of == v] for v in np.unique(of)] for x, of in ((a, of_a), (b, of_b))]
    values = []
    for _ in range(resamples):
        drawn = [np.concatenate([g[i] for i in rng.integers(0, len(g), len(g))]) for g in groups]
        values.append(frechet_distance(drawn[0], drawn[1], ddof))
    centre, spread = frechet_distance(a, b, ddof), 1.96 * float(np.std(values, ddof=1))
    return centre - spread, centre + spread


class Extrapolation(NamedTuple):
    """A Frechet distance at an infinite number of generated videos (Chong and Forsyth, CVPR 2020)."""

    value: float
    """Intercept of a straight line in 1 / N; the bias at N is the measured value minus this."""
    sizes: list[int]
    """Videos of the subsets."""
    distances: list[float]
    """Mean distance at each size."""


def extrapolate(
    fake: np.ndarray,
    real: np.ndarray,
    of_fake: np.ndarray,
    ddof: int,
    points: int = 10,
    repeats: int = 3,
    seed: int = 0,
) -> Extrapolation | None:
    """FID-infinity: distances of random subsets of N videos to all of `real`, extrapolated to 1 / N = 0.

    Sizes are evenly spread in 1 / N between N / 4 and N. What a small *real* set adds stays in.

    Args:
        fake, real: features (M, D) and (R, D).
        of_fake: (M,) the video of each row; rows of one video are taken together.
        ddof: of the covariances.
        points, repeats: sizes, and subsets of each.
        seed: of the subsets.

    Returns:
        None if the smallest subset has fewer videos than `LEAST_OF_LINE` times the features: its covariance lacks
        so much that the distance is no straight line in 1 / N, and its intercept means nothing.
    """
    rng, target = np.random.default_rng(seed), Moments.of(real)
    videos = [np.flatnonzero(of_fake == video) for video in np.unique(of_fake)]
    n = len(videos)
    sizes = sorted({round(1 / x) for x in np.linspace(1 / n, 4 / n, points)})
    if sizes[0] < LEAST_OF_LINE * fake.shape[1] or len(sizes) < 2:
        return None
    distances = []
    for size in sizes:
        drawn = [rng.permutation(n)[:size] for _ in range(1 if size == n else repeats)]
        subsets = [fake[np.concatenate([videos[i] for i in own])] for own in drawn]
        distances.append(float(np.mean([frechet_distance(s, target, ddof) for s in subsets])))
    slope_and_value = np.polyfit(1 / np.array(sizes), distances, 1)
    return Extrapolation(float(slope_and_value[1]), sizes, distances)
