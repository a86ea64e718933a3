"""The content mapping F_c: noise to a style that a whole video shares (paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from longtake.config import check_range
from longtake.systems.stylegan_v.layers import EqualLinear, full_precision, unit_moment

AVERAGE = 0.995
"""Decay of the average style an update."""


@dataclass(frozen=True)
class MappingConfig:
    """F_c, a perceptron."""

    noise: int = 512
    """Width of the content noise z."""
    width: int = 512
    """Width of a style w."""
    layers: int = 2
    """Layers (2 in the released configuration, 8 in StyleGAN2; the paper names no number)."""

    def __post_init__(self):
        check_range(self, "noise width layers", 1)


class Mapping(nn.Module):
    """Noise (B, noise) and labels, one-hot (B, classes), to styles (B, width).

    Learns at a hundredth of the rate of the rest. In training mode it keeps a moving average of its styles, also
    while the discriminator learns.
    """

    average: Tensor

    def __init__(self, config: MappingConfig, classes: int = 0):
        super().__init__()
        self.embed = EqualLinear(classes, config.width) if classes else None
        widths = [config.noise + (config.width if classes else 0)] + [config.width] * config.layers
        self.layers = nn.Sequential(*(EqualLinear(a, b, rate=0.01, active=True) for a, b in pairwise(widths)))
        self.register_buffer("average", torch.zeros(config.width))

    @full_precision
    def forward(self, z: Tensor, label: Tensor, track: bool = True) -> Tensor:
        """`track`: whether the average follows."""
        x = unit_moment(z)
        if self.embed is not None:
            x = torch.cat([x, unit_moment(self.embed(label.to(x.dtype)))], 1)
        w = self.layers(x)
        if self.training and track:
            self.average.copy_(w.detach().mean(0).lerp(self.average.to(w.dtype), AVERAGE))
        return w


def truncate(w: Tensor, centre: Tensor, psi: float) -> Tensor:
    """Styles drawn towards a centre (StyleGAN section 3.1): psi 1 leaves them, psi 0 gives the centre."""
    return w if psi == 1 else centre.to(w.dtype).lerp(w, psi)
