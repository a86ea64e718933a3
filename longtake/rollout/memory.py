"""What glibc does with freed memory; elsewhere than on Linux with glibc nothing here does anything."""

from __future__ import annotations

import ctypes
import sys

THRESHOLD = 4 << 20
"""Bytes from which glibc gets a block from the system and gives it back when freed."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def steady_allocations() -> None:
    """Keep the peak of a long rollout where it was at its start, for this process.

    Left alone, glibc raises the threshold with every large block that is freed, keeps such blocks in its heap, and
    lets the heap fragment: the peak of a video of 8,192 frames was a quarter above that of 256 frames.
    """
    _set({_M_MMAP_THRESHOLD: THRESHOLD, _M_TRIM_THRESHOLD: THRESHOLD})


def kept_allocations() -> None:
    """Give no freed memory back to the system, for this process: every training step needs the same again.

    Left alone, the large blocks of a step come fresh from the system, page by page: a third of the time of a small
    transformer's update.
    """
    _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1})


def _set(options: dict[int, int]) -> None:
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            for option, value in options.items():
                mallopt(option, value)
