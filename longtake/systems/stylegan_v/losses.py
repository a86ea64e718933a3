"""Losses of StyleGAN-V: StyleGAN2's, over clips (paper section 4.1 and released code)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.nn.precision import wide


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss of logits (B, ...): (B, ...)."""
    return F.softplus(-fake)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of logits (B, ...), real and made: (B, ...)."""
    return F.softplus(-real) + F.softplus(fake)


def gradient_penalty(logits: Tensor, frames: Tensor) -> Tensor:
    """Squared gradient (B, F) of the summed logits by every real frame of (B, 3, F, H, W): R1 of Mescheder et al.
    (ICML 2018) without its factor. Both `logits` and `frames` must be part of the graph."""
    (gradient,) = torch.autograd.grad(logits.sum(), frames, create_graph=True)
    return wide(gradient).square().sum((1, 3, 4))


def default_gamma(size: tuple[int, int], batch: int) -> float:
    """Weight of R1 by the rule of the released configuration: 0.0002 * pixels of a frame / videos an update (of
    all processes)."""
    return 0.0002 * size[0] * size[1] / batch


def path_lengths(frames: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length (B,) of the change of frames (B, 3, F, H, W), seen through `noise` like them, by styles (B, L, W).

    StyleGAN2 section 3.2, where frames are one image: the noise is divided by the root of the pixels of a clip.
    """
    pixels = frames.shape[2] * frames.shape[3] * frames.shape[4]
    (gradient,) = torch.autograd.grad((frames * noise).sum() / math.sqrt(pixels), ws, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
