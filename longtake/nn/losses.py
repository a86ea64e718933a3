"""Adversarial losses that two or more systems share. All take logits of any shape and return scalars in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.nn.precision import wide

GANLoss = Literal["hinge", "vanilla"]


def discriminator_loss(real: Tensor, fake: Tensor, kind: GANLoss = "hinge") -> Tensor:
    """The discriminator's loss on logits of real and of made examples.

    hinge: (E relu(1 - real) + E relu(1 + fake)) / 2; vanilla: (E softplus(-real) + E softplus(fake)) / 2, half the
    negative log-likelihood that section 2.1 of TATS writes. The released code of TATS defaults to hinge.
    """
    real, fake = wide(real), wide(fake)
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's loss on logits of what it made: -E fake, for both kinds (released code of TATS)."""
    return -wide(fake).mean()


def feature_matching_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the mean absolute difference of discriminator features (TATS section 2.1, L_match).

    Leave the logits out. No gradient flows into `real`.
    """
    return torch.stack([F.l1_loss(wide(f), wide(r.detach())) for f, r in zip(fake, real, strict=True)]).sum()
