"""Regrouping a stream of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def regroup(chunks: Iterable[Tensor], frames: int, size: int | None) -> Iterator[Tensor]:
    """Trim a stream to exactly `frames` frames and cut it into chunks of `size` (None: as they come).

    Args:
        chunks: (B, 3, t, H, W) each, any t >= 0, at least `frames` in all.
        frames: total to give out.
        size: frames a chunk; the last may be shorter.

    Raises:
        RuntimeError: the stream ended too early (a fault of the system, not of the user).
    """
    held: list[Tensor] = []
    have, left = 0, frames
    for chunk in chunks:
        chunk = chunk[:, :, : left - have].float().cpu()
        held.append(chunk)
        have += chunk.shape[2]
        while have and (have >= (size or 1) or have == left):
            whole = held[0] if len(held) == 1 else torch.cat(held, 2)
            n = min(size or have, have)
            yield whole[:, :, :n]
            held = [whole[:, :, n:]]
            have, left = have - n, left - n
        if not left:
            return
    raise RuntimeError(f"the rollout stopped {left - have} frames short of {frames}")
