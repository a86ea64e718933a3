"""The network: residual 3-D convolutions at low resolution, then pixels out of channels.

Shapes: B batch, T frames, H W height and width of the small video, r the factor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.conv import PaddedConv3d
from longtake.systems.upscaler.config import UpscalerConfig


def resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Every frame of (B, 3, T, H, W) to `size`, bicubic and antialiased, not clamped."""
    frames = video.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = PaddedConv3d(width, width, 3), PaddedConv3d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))


class UpscalerNetwork(nn.Module):
    """(B, 3, T, H, W) in [-1, 1] -> (B, 3, T, r H, r W), not clamped; untrained it is bicubic enlargement."""

    def __init__(self, config: UpscalerConfig):
        super().__init__()
        self.factor = config.factor
        self.reach = 2 + 2 * config.blocks
        """Frames before and after a frame that it depends on."""
        self.stem = PaddedConv3d(3, config.width, 3)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.head = PaddedConv3d(config.width, 3 * config.factor**2, 3)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, video: Tensor) -> Tensor:
        height, width = video.shape[3:]
        detail = self.head(F.silu(self.blocks(self.stem(video)))).transpose(1, 2)
        detail = F.pixel_shuffle(detail, self.factor).transpose(1, 2)
        return resize(video.to(detail.dtype), (height * self.factor, width * self.factor)) + detail
