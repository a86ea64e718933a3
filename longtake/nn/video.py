"""What the stages of several systems do with videos (B, 3, T, H, W) in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor


def pick_frame(video: Tensor, frame: Tensor) -> Tensor:
    """One frame of each clip: (B, 3, T, H, W), (B,) -> (B, 3, H, W)."""
    return video[torch.arange(len(video), device=video.device), :, frame]


def psnr(video: Tensor, made: Tensor) -> Tensor:
    """Mean over the first dimension of the peak signal-to-noise ratio in dB, both (B, ...) in [-1, 1]; `made` is
    clamped."""
    error = (made.clamp(-1, 1) - video).float().square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()


def tiled(rows: Tensor) -> Tensor:
    """One video (3, T, R * H, B * W) of R rows of B clips (R, B, 3, T, H, W)."""
    return rows.permute(2, 3, 0, 4, 1, 5).flatten(2, 3).flatten(3, 4)
