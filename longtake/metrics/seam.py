"""Seams: does a long video jump where its pieces were joined?

No paper measures this. A rollout that makes a video in pieces joins them at known places; a jump there shows as a
frame difference that is larger than the video's own differences nearby.
"""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 8


def joins(period: int, first: int | None, count: int) -> np.ndarray:
    """Numbers of the differences across joins, of `count`: pieces begin at `first` and every `period` after it."""
    return np.arange((first or period) - 1, count, period)


def first_join(period: int, first: int | None, given: int) -> int:
    """The frame at which the first piece begins after `given` frames that are left out, counted from the first
    frame that is kept: 1 or more. Pieces are taken to begin where they would if nothing were given; one that begins
    right after the given frames has no difference to be seen at its join.

    Args:
        period, first: as in `joins`, counted from the first frame of the whole video.
        given: so many frames at the beginning are left out.
    """
    at = (first or period) - given
    return at if at > 0 else period - (-at) % period


def seam_ratio(differences: np.ndarray, period: int, first: int | None = None) -> float:
    """Mean frame difference across joins, of the mean of its neighbourhood without joins; 1 means no seam.

    Args:
        differences: (T-1,) mean absolute differences of one video; number t lies between frames t and t + 1.
        period: frames between joins.
        first: frame at which the second piece begins; None: `period`, so a piece begins at every multiple of it.

    Returns:
        The mean over joins; 1 if there is none, or nothing moves.
    """
    places = joins(period, first, len(differences))
    between = np.ones(len(differences), bool)
    between[places] = False
    if not len(places) or not between.any():
        return 1.0
    ratios = []
    for join in places:
        low, high = max(0, join - NEIGHBOURS), join + NEIGHBOURS + 1
        around = differences[low:high][between[low:high]]
        if len(around) and around.mean() > 1e-6:
            ratios.append(differences[join] / around.mean())
    return float(np.mean(ratios)) if ratios else 1.0


def strongest_period(differences: np.ndarray, longest: int = 64) -> tuple[int, float]:
    """The period of joins with the largest seam ratio, looked for without knowing it, and that ratio.

    A real video has some period that fits by chance, so the ratio means something beside that of real videos only.

    Args:
        differences: (T-1,) of one video.
        longest: largest period tried; at most a quarter of the video.
    """
    limit = min(longest, (len(differences) + 1) // 4)
    found = [(seam_ratio(differences, period), period) for period in range(2, limit + 1)]
    ratio, period = max(found, default=(1.0, 0))
    return period, ratio
