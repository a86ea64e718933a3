"""The normalisations that a network can be built with, by name."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.nn.distributed import active, summed_over_processes

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


class _OverProcesses(nn.Module):
    """Batch norm whose statistics in training are those of all processes: two of batch B are as one of 2B.

    On any device; double backward works. Every process must call it equally often, with clips of equal shape.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    eps: float

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and active()):
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        x = input.float()
        count = x.new_tensor([x.numel() / x.shape[1]])
        first = summed_over_processes(torch.cat([x.sum(axes), count]))
        count, mean = first[-1].detach(), first[:-1] / first[-1].detach()
        shape = (1, -1, *[1] * (input.dim() - 2))
        centred = x - mean.view(shape)
        variance = summed_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


class BatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    """Of (B, C)."""


class BatchNorm2d(_OverProcesses, nn.BatchNorm2d):
    """Of images (B, C, H, W)."""


class BatchNorm3d(_OverProcesses, nn.BatchNorm3d):
    """Of videos (B, C, T, H, W)."""


def make_norm(kind: NormKind, channels: int, dims: int = 3, groups: int = 32) -> nn.Module:
    """`kind` for `channels` channels of images (dims 2) or videos (dims 3); at most `groups` groups, eps 1e-6."""
    if kind == "batch":
        return BatchNorm3d(channels) if dims == 3 else BatchNorm2d(channels)
    layer = FrameNorm if kind == "frame" and dims == 3 else nn.GroupNorm
    return layer(math.gcd(groups, channels), channels, eps=1e-6)
