"""Losses of Loong; the adversarial terms are in `nn.losses`, the codebook's in `loong.quantize`.

Shapes: B clips, n video tokens of a clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(v_i | v_<i, t) of equation 1: logits (B, n, V), targets (B, n) -> (B, n) in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)


def early_weights(count: int, early: int, weight: float, device: torch.device | str = "cpu") -> Tensor:
    """Weights (count,) of equation 2: 1 + `weight` (lambda) for the first `early` tokens (K), 1 for the others."""
    weights = torch.ones(count, device=device)
    weights[:early] += weight
    return weights


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Equations 1 and 2 as a mean, so that the scale is that of every stage: losses (B, n), weights (n,)."""
    return (losses.mean(0) * weights).sum() / weights.sum()


def by_range(losses: Tensor, latents: int, early: int) -> dict[str, Tensor]:
    """Mean losses of the ranges of frames in Fig. 3.

    Args:
        losses: (B, n) of whole clips.
        latents: latent slices of a clip.
        early: latent slices of the early frames.

    Returns:
        `first` (frame 1), and for longer clips `early` (frames 1-17), `late` (18-65) and `last` (the last quarter:
        50-65).
    """
    slices = losses.mean(0).view(latents, -1).mean(1)
    ranges = {"first": slices[:1]}
    if latents > 1:
        ranges["early"] = slices[:early]
    if latents > early:
        ranges |= {"late": slices[early:], "last": slices[-max(1, latents // 4) :]}
    return {name: part.mean() for name, part in ranges.items()}
