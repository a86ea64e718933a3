"""Scores of a classifier's class probabilities: inception score, entropies, coherence over time.

Shapes: N clips, K classes, W windows of one video. Float64, natural logarithms.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np


def _plogp(p: np.ndarray) -> np.ndarray:
    """p log p with 0 log 0 = 0."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)


class InceptionScore(NamedTuple):
    """Inception score and the two entropies it is made of (thesis Eq. 3.8: IS = exp(H(y) - H(y|x)))."""

    mean: float
    """Over splits; at most the number of classes."""
    std: float
    """Population standard deviation over splits."""
    splits: np.ndarray
    whole: float
    """Of all clips at once."""
    inter_entropy: float
    """H(y) in nats, entropy of the mean distribution: variety between clips, at most log K."""
    intra_entropy: float
    """H(y|x) in nats, mean entropy of a clip's distribution: lower is more certain."""


def inception_score(probabilities: np.ndarray, splits: int = 10) -> InceptionScore:
    """Inception score (Salimans et al., 2016) of class probabilities (N, K), N of at least `splits`.

    Splits are consecutive rows; shuffle them first if their order means something.
    """
    p = np.asarray(probabilities, np.float64)
    edges = [i * len(p) // splits for i in range(splits + 1)]
    parts = np.array([_score(p[a:b]) for a, b in pairwise(edges)])
    inter, intra = _entropies(p)
    return InceptionScore(float(parts.mean()), float(parts.std()), parts, _score(p), inter, intra)


def _entropies(p: np.ndarray) -> tuple[float, float]:
    return float(-_plogp(p.mean(0)).sum()), float(-_plogp(p).sum(1).mean())


def _score(p: np.ndarray) -> float:
    inter, intra = _entropies(p)
    return float(np.exp(inter - intra))


class Coherence(NamedTuple):
    """Does a long video stay with the class of its first window? Index w runs over windows (TATS section 3.3)."""

    ccs: np.ndarray
    """(W,) class coherence: share of videos whose most likely class is that of their window 0."""
    ics: np.ndarray
    """(W,) inception coherence: KL(p_w || p_0), mean over videos. (The paper prints a sum: `ics_sum`.)"""
    ics_sum: np.ndarray
    """(W,) the same summed over videos."""
    ccs_area: float
    """Area under CCS over the window axis scaled to [0, 1]; 1 is perfect."""


def coherence(probabilities: np.ndarray) -> Coherence:
    """CCS and ICS of class probabilities (W, N, K) of the non-overlapping windows of N videos."""
    p = np.asarray(probabilities, np.float64)
    ccs = (p.argmax(-1) == p[0].argmax(-1)).mean(1)
    log = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    divergence = np.where(p > 0, p * (log - log[0]), 0).sum(-1)
    area = float(np.trapezoid(ccs, dx=1 / (len(ccs) - 1))) if len(ccs) > 1 else float(ccs[0])
    return Coherence(ccs, divergence.mean(1), divergence.sum(1), area)
