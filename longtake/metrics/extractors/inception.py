"""Inception-v3 as FID uses it (Heusel et al., 2017), filled from the weights of pytorch-fid.

The file is `pt_inception-2015-12-05-6726825d.pth`, TensorFlow's network of 2015 in torchvision's layout. It differs
from torchvision's own in its pooling branches: averages leave the border out, and the last block takes the maximum.
Features are the 2,048 pooled activations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.metrics.extractors.base import Features, as_video, file_hash, resize_frames
from longtake.metrics.extractors.weights import fill, read_weights

INPUT = (299, 299)
ROW, COLUMN = (1, 7), (7, 1)


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU; `pad` keeps the size."""

    def __init__(
        self, inner: int, outer: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True
    ):
        super().__init__()
        size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (size[0] // 2, size[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inner, outer, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class BlockA(nn.Module):
    def __init__(self, inner: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(inner, 64)
        self.branch5x5_1, self.branch5x5_2 = Conv(inner, 48), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inner, 64), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inner, pooled)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average(x))], 1
        )


class BlockB(nn.Module):
    def __init__(self, inner: int):
        super().__init__()
        self.branch3x3 = Conv(inner, 384, 3, 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inner, 64), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, halve(x)], 1)


class BlockC(nn.Module):
    def __init__(self, inner: int, width: int):
        super().__init__()
        self.branch1x1 = Conv(inner, 192)
        self.branch7x7_1, self.branch7x7_2 = Conv(inner, width), Conv(width, width, ROW)
        self.branch7x7_3 = Conv(width, 192, COLUMN)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(inner, width), Conv(width, width, COLUMN)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, ROW), Conv(width, width, COLUMN)
        self.branch7x7dbl_5 = Conv(width, 192, ROW)
        self.branch_pool = Conv(inner, 192)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inner: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inner, 192), Conv(192, 320, 3, 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(inner, 192), Conv(192, 192, ROW)
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, COLUMN), Conv(192, 192, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, halve(x)], 1)


class BlockE(nn.Module):
    def __init__(self, inner: int, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Conv(inner, 320)
        self.branch3x3_1 = Conv(inner, 384)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inner, 448), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(inner, 192)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Images (B, 3, 299, 299) in [-1, 1] -> pooled features (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2, pad=False), Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80), Conv(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = BlockC(768, 128), BlockC(768, 160), BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, False), BlockE(2048, True)

    def forward(self, x: Tensor) -> Tensor:
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, part in self.named_children():
            if name.startswith("Mixed"):
                x = part(x)
        return x.mean((2, 3))


class InceptionExtractor:
    """FID's Inception over single frames.

    Raises:
        UserError: other weights (the first that is missing or wrong is named).
    """

    name = "inception-2015"
    preprocessing = "bilinear without antialiasing to 299x299, [-1, 1]"
    least, most, dim = 1, 1, 2048
    classes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, device: torch.device):
        state = read_weights(path)
        self.network = Inception()
        fill(self.network, state, path, "the Inception of pytorch-fid")
        self.network.eval().to(device)
        self.device, self.hash = device, file_hash(path)

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device), INPUT, antialias=False).div_(127.5).sub_(1)
        return Features(self.network(video[:, :, 0]).float().cpu().numpy(), None)
