"""Choosing among candidate clips by a discriminator (VDrej: Yang's thesis, section 5.2.2 and Algorithm 8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def best_clips(
    candidates: Tensor, score: Callable[[Tensor], Tensor], before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The candidate of each video that a discriminator holds for the most real one.

    Args:
        candidates: (B, n, 3, T, H, W), n clips that could be the next of each video; n = 1 asks no one.
        score: clips (N, 3, T, H, W) -> (N,) or (N, ...) logits of a discriminator, higher is more real; logits
            of patches are averaged.
        before: (B, 3, t, H, W), the t < T frames after which the clips would follow. What is judged is then the
            join, those frames and the candidate's first T - t. None: whole candidates.

    Returns:
        The chosen clips (B, 3, T, H, W), and which they are (B,).
    """
    B, n, _, T = candidates.shape[:4]
    if n == 1:
        return candidates[:, 0], torch.zeros(B, dtype=torch.long, device=candidates.device)
    clips = candidates.flatten(0, 1)
    if before is not None:
        clips = torch.cat([before.to(clips).repeat_interleave(n, 0), clips[:, :, : T - before.shape[2]]], 2)
    choice = score(clips).view(B, n, -1).mean(2).argmax(1)
    return candidates[torch.arange(B, device=choice.device), choice], choice
