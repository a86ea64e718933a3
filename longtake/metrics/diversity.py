"""How different are videos made from one condition, and how close are they to training footage?"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def moving_parts(flow: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Where something moves: flow magnitude at least `share` of the largest of its video (CCVS Fig. 6).

    Args:
        flow: (..., 2) displacement in pixels, any network's or method's.
        share: of the largest magnitude.

    Returns:
        bool (...,).
    """
    magnitude = np.linalg.norm(flow, axis=-1)
    return magnitude >= share * max(float(magnitude.max()), 1e-12)


def change_as_flow(frames: np.ndarray) -> np.ndarray:
    """A stand-in for optical flow where none is at hand: each frame's absolute change since the one before.

    Args:
        frames: (T, H, W, 3) in [0, 1].

    Returns:
        (T, H, W, 2), the change in its first entry; the first frame takes the second one's.
    """
    change = np.abs(np.diff(frames, axis=0)).mean(-1)
    change = np.concatenate([change[:1], change])
    return np.stack([change, np.zeros_like(change)], -1)


def diversity(samples: np.ndarray, masks: np.ndarray | None = None) -> float:
    """DIV: mean squared distance a pixel of all pairs of samples for one condition (CCVS section 4, Fig. 6).

    The paper says "pixel-wise distance"; that it is squared, on [0, 1], is our reading.

    Args:
        samples: (S, T, H, W, 3) in [0, 1], S of at least 2.
        masks: bool (S, T, H, W); a pair is compared where either moves. None: everywhere.

    Returns:
        The mean over pairs; pairs in which nothing moves are left out, 0 if all are.
    """
    values = []
    for i, j in combinations(range(len(samples)), 2):
        error = ((samples[i] - samples[j]) ** 2).mean(-1)
        if masks is None:
            values.append(error.mean())
        elif (where := masks[i] | masks[j]).any():
            values.append(error[where].mean())
    return float(np.mean(values)) if values else 0.0


def nearest_distances(features: np.ndarray, among: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """Euclidean distance of every row of `features` (N, D) to its nearest row of `among` (M, D): (N,)."""
    a, b = np.asarray(features, np.float64), np.asarray(among, np.float64)
    squares = (b * b).sum(1)
    found = []
    for part in (a[i : i + chunk] for i in range(0, len(a), chunk)):
        distances = (part * part).sum(1)[:, None] - 2 * part @ b.T + squares
        found.append(np.sqrt(distances.min(1).clip(0)))
    return np.concatenate(found)
