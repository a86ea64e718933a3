"""The normalisations that a network can be built with, by name."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

NormKind = Literal["batch", "group", "frame"]


class FrameNorm(nn.GroupNorm):
    """Group norm of every frame by itself: (B, C, T, H, W) -> same.

    Unlike group norm over whole clips, a frame's result does not depend on which frames stand around it, so a long
    video can be decoded in windows without seams.
    """

    def forward(self, input: Tensor) -> Tensor:
        b, _, t = input.shape[:3]
        frames = super().forward(input.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (b, t)).transpose(1, 2)


def make_norm(kind: NormKind, channels: int, dims: int = 3, groups: int = 32) -> nn.Module:
    """`kind` for `channels` channels of images (dims 2) or videos (dims 3); at most `groups` groups, eps 1e-6."""
    if kind == "batch":
        return nn.BatchNorm3d(channels) if dims == 3 else nn.BatchNorm2d(channels)
    layer = FrameNorm if kind == "frame" and dims == 3 else nn.GroupNorm
    return layer(math.gcd(groups, channels), channels, eps=1e-6)
