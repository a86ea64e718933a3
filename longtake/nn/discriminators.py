"""Patch discriminators of images and videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from longtake.nn.norm import NormKind, make_norm

MAX_CHANNELS = 512


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the two patch discriminators of a tokenizer, of single frames and of clips."""

    width: int = 64
    """Channels of the first layer; they double up to 512."""
    layers: int = 3
    """Strided layers."""

    def __post_init__(self):
        if min(self.width, self.layers) < 1:
            raise ValueError(
                f"a discriminator of width {self.width} and {self.layers} layers needs 1 or more of both"
            )


class Judgement(NamedTuple):
    """What a discriminator says of its input."""

    logits: Tensor
    """(B, 1, ...) one for each patch; higher is more real."""
    features: list[Tensor]
    """The output of every unit, the logits last."""


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., 2017) in 2 or 3 dimensions, as TATS uses it (section 2.1, released code).

    `layers` convolutions of stride 2, one of stride 1 and the logits, all with kernel 4 and zero padding 2; widths
    double from `width` up to 512; leaky ReLU of slope 0.2; a norm after each but the first and the last.
    """

    def __init__(
        self,
        dims: int,
        width: int = 64,
        layers: int = 3,
        norm: NormKind = "batch",
        channels: int = 3,
        groups: int = 32,
    ):
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = [channels, *(min(width << i, MAX_CHANNELS) for i in range(layers + 1))]
        self.units = nn.ModuleList()
        for i in range(layers + 1):
            unit = [convolution(widths[i], widths[i + 1], 4, stride=2 if i < layers else 1, padding=2)]
            if i > 0:
                unit.append(make_norm(norm, widths[i + 1], dims, groups))
            self.units.append(nn.Sequential(*unit, nn.LeakyReLU(0.2)))
        self.units.append(nn.Sequential(convolution(widths[-1], 1, 4, padding=2)))

    def forward(self, x: Tensor) -> Judgement:
        """`x` (B, channels, H, W) or (B, channels, T, H, W)."""
        features = []
        for unit in self.units:
            x = unit(x)
            features.append(x)
        return Judgement(x, features)
