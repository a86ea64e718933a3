"""How far a figure can be trusted: intervals by bootstrap over videos, and the bias of a Frechet distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from longtake.metrics.frechet import Moments, frechet_distance

Interval = tuple[float, float]


def mean_interval(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval | None:
    """95 % percentile bootstrap interval of a mean over videos; None for a single one."""
    if len(values) < 2 or not resamples:
        return None
    picks = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.asarray(values, np.float64)[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


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
    distances: list[float]
    """Mean distance at each size."""


def extrapolate(
    fake: np.ndarray, real: np.ndarray, ddof: int, points: int = 10, repeats: int = 3, seed: int = 0
) -> Extrapolation:
    """FID-infinity: distances of random subsets of `fake` (N, D) to all of `real`, extrapolated to 1 / N = 0.

    Sizes are evenly spread in 1 / N between N / 4 and N. What a small *real* set adds stays in.
    """
    rng, target, n = np.random.default_rng(seed), Moments.of(real), len(fake)
    sizes = sorted({round(1 / x) for x in np.linspace(1 / n, 4 / n, points)})
    distances = []
    for size in sizes:
        subsets = [fake[rng.permutation(n)[:size]] for _ in range(1 if size == n else repeats)]
        distances.append(float(np.mean([frechet_distance(s, target, ddof) for s in subsets])))
    slope_and_value = np.polyfit(1 / np.array(sizes), distances, 1)
    return Extrapolation(float(slope_and_value[1]), sizes, distances)
