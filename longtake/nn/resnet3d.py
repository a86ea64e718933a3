"""A small 3-D residual network over clips (in the manner of R3D-18: Tran et al., CVPR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.norm import BatchNorm3d

DIFFERENCE_GAIN = 4.0


class Residual3d(nn.Module):
    """Two 3x3x3 convolutions with batch norm and a shortcut; `stride` halves time, height and width."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm3d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, BatchNorm3d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(h) + self.shortcut(x))


class ResNet3d(nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1] -> feature maps, the last of which is pooled into features.

    It sees each frame and its difference to the frame before (times `DIFFERENCE_GAIN`), and pools by mean and by
    maximum: what moves may be a few pixels in a still picture, which a mean alone drowns.

    The stem keeps the frame rate and halves the frame; each later level halves all three and doubles the channels.

    Args:
        width: channels of the first level.
        levels: how many levels; the features have width * 2^levels channels.
        blocks: residual blocks a level.
    """

    def __init__(self, width: int = 16, levels: int = 4, blocks: int = 1):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(6, width, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False), BatchNorm3d(width), nn.ReLU()
        )
        widths = [width << i for i in range(levels)]
        self.levels = nn.ModuleList(
            nn.Sequential(
                Residual3d(widths[max(i - 1, 0)], widths[i], 1 if i == 0 else 2),
                *(Residual3d(widths[i], widths[i], 1) for _ in range(blocks - 1)),
            )
            for i in range(levels)
        )
        self.features = 2 * widths[-1]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The output of every level, finest first: (B, C, t, h, w) each."""
        change = F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 0, 1, 0))
        x = self.stem(torch.cat([x, DIFFERENCE_GAIN * change], 1))
        found = []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, features): mean and maximum of the last map over time and space."""
        last = self.maps(x)[-1].flatten(2)
        return torch.cat([last.mean(2), last.amax(2)], 1)
