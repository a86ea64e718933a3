"""Frechet distance of Gaussians fitted to features: the mathematics of FID and FVD.

Shapes: N samples, D features. Everything in float64.
"""

from __future__ import annotations

import numpy as np


class Moments:
    """Running mean and covariance of features, exact under any split into batches or processes.

    Memory is D * D numbers whatever N is.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))
        """Sum of (x - mean)(x - mean)^T."""

    @staticmethod
    def of(features: np.ndarray) -> Moments:
        """Moments of (N, D)."""
        moments = Moments(features.shape[1])
        moments.add(features)
        return moments

    def add(self, features: np.ndarray) -> None:
        """Take in (n, D) more samples."""
        x = np.asarray(features, np.float64)
        other = Moments(x.shape[1])
        other.count = len(x)
        if len(x):
            other.mean = x.mean(0)
            centred = x - other.mean
            other.scatter = centred.T @ centred
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Take in everything another one has seen (Chan et al., 1979)."""
        total = self.count + other.count
        if not other.count:
            return
        shift = other.mean - self.mean
        self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """(D, D), divided by N - ddof: 1 is the unbiased one, 0 that of StyleGAN-V's protocol."""
        return self.scatter / max(self.count - ddof, 1)


def frechet_distance(a: Moments | np.ndarray, b: Moments | np.ndarray, ddof: int = 1) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al., 2017; FVD: Unterthiner et al., 2018).

    The trace of the root is taken from the symmetric C1^(1/2) C2 C1^(1/2), which stays real and exact also for
    fewer samples than features, where matrix roots of the product do not.

    Args:
        a, b: moments, or features (N, D) with N of at least 2.
        ddof: of the covariances.
    """
    first, second = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    one, two = first.covariance(ddof), second.covariance(ddof)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ two @ root)
    overlap = np.sqrt(product.clip(0)).sum()
    shift = first.mean - second.mean
    return float(max(shift @ shift + np.trace(one) + np.trace(two) - 2 * overlap, 0.0))
