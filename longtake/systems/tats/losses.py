"""Losses of TATS; the GAN terms common to several systems are in `nn.losses`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(video: Tensor, reconstruction: Tensor) -> Tensor:
    """L_rec of section 2.1: mean absolute error, measured on [-0.5, 0.5] as in the official code.

    Both (B, 3, T, H, W) in [-1, 1].
    """
    return F.l1_loss(reconstruction, video) / 2


def squared_loss(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error on [-0.5, 0.5]; not of the paper. Both (B, 3, T, H, W) in [-1, 1]."""
    return F.mse_loss(reconstruction, video) / 4


def prior_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_transformer of section 2.1: mean cross-entropy over video tokens. logits (B, n, V), targets (B, n)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
