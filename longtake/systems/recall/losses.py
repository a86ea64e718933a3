"""Losses of the recall family: all are minimised (the thesis mixes signs), discriminators give logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.systems.recall.latents import LatentSpace, difference_maps


def real_loss(logits: Tensor) -> Tensor:
    """-log D: for the discriminator on real examples, for the generator on its own."""
    return F.softplus(-logits.float()).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """-log(1 - D)."""
    return F.softplus(logits.float()).mean()


def total(losses: Sequence[Tensor], average: bool) -> Tensor:
    """Losses of several made clips: summed (Eq. 3.4 to 3.6), or averaged (Algorithms 6 and 9)."""
    stacked = torch.stack(list(losses))
    return stacked.mean() if average else stacked.sum()


def kl_losses(space: LatentSpace) -> tuple[Tensor, Tensor]:
    """D_KL of content and of motion to N(0, I) (Eq. 3.1): summed over dimensions, averaged over clips."""
    return _kl(space.content_mean, space.content_logvar), _kl(space.motion_mean, space.motion_logvar)


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()


def absolute_error(made: Tensor, target: Tensor, beta: float = 0.0) -> Tensor:
    """Mean absolute error (Eq. 3.1), or Smooth L1 (section 5.3.2) with `beta` above 0; any equal shapes."""
    return F.smooth_l1_loss(made.float(), target.float(), beta=beta)


def motion_error(made: Tensor, target: Tensor) -> Tensor:
    """First frame and difference maps instead of frames (Eq. 3.9 and 3.10); both (B, 3, T, H, W)."""
    first = absolute_error(made[:, :, 0], target[:, :, 0])
    return first + absolute_error(difference_maps(made), difference_maps(target))


def plan_loss(predicted: Tensor, tokens: Tensor, known: Tensor) -> Tensor:
    """Smooth L1 over real tokens (Eq. 5.3, read shifted by one: each token is predicted from those before it).

    Args:
        predicted: (B, n, D).
        tokens: (B, n, D), what should have been predicted.
        known: (B, n) bool, False where there is only padding.
    """
    error = F.smooth_l1_loss(predicted.float(), tokens.float(), reduction="none").mean(2)
    return (error * known).sum() / known.sum().clamp_min(1)
