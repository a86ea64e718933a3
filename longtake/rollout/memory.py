"""Keeping the peak of a long rollout where it was at its start."""

from __future__ import annotations

import ctypes
import sys

THRESHOLD = 4 << 20
"""Bytes from which glibc gets a block from the system and gives it back when freed."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def steady_allocations() -> None:
    """Fix glibc's threshold for large blocks, for this process.

    Left alone, glibc raises it with every large block that is freed, keeps such blocks in its heap, and lets the
    heap fragment: the peak of a video of 8,192 frames was a quarter above that of 256 frames. Elsewhere than on
    Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, THRESHOLD)
