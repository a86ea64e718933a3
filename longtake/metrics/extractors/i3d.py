"""Inflated Inception-v1, I3D (Carreira and Zisserman, CVPR 2017): the network of FVD.

Two forms of the Kinetics-400 RGB weights are in use, and both are read:

* a state dict in the layout of piergiaj/pytorch-i3d (`Conv3d_1a_7x7.conv3d.weight` ...), as `i3d_pretrained_400.pt`
  of VideoGPT and TATS; here it fills the network of this file;
* the TorchScript file of StyleGAN-V, which brings its own code: `extractors/torchscript.py`.

Features are the 400 logits, averaged over time, which is what FVD is defined on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.metrics.extractors.base import Features, as_video, file_hash, resize_frames
from longtake.metrics.extractors.weights import fill, read_weights

# Every mixed block: channels of its branches 1x1; 1x1, 3x3x3; 1x1, 3x3x3; pool, 1x1.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": (3, 2),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": (2, 2),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
INPUT = (224, 224)


def same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zero padding as TensorFlow's SAME: the output has ceil(length / stride), the back gets the odd one."""
    pads: list[int] = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - s if length % s == 0 else k - length % s, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Unit3d(nn.Module):
    """SAME convolution, batch norm, ReLU; without norm and activation for the logits."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1, eps: float = 1e-3, plain=False):
        super().__init__()
        self.kernel, self.stride = (kernel, kernel, kernel), (stride, stride, stride)
        self.conv3d = nn.Conv3d(inner, outer, kernel, stride, bias=plain)
        self.bn = None if plain else nn.BatchNorm3d(outer, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(same(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Pool3d(nn.Module):
    """SAME max pooling. The zeros of the border never win: what comes in is not negative."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same(x, self.kernel, self.stride), self.kernel, self.stride)


class MixedBlock(nn.Module):
    """Four branches, concatenated."""

    def __init__(self, inner: int, widths: tuple[int, ...], eps: float):
        super().__init__()
        a, b0, b1, c0, c1, d = widths
        self.b0 = Unit3d(inner, a, eps=eps)
        self.b1a, self.b1b = Unit3d(inner, b0, eps=eps), Unit3d(b0, b1, 3, eps=eps)
        self.b2a, self.b2b = Unit3d(inner, c0, eps=eps), Unit3d(c0, c1, 3, eps=eps)
        self.b3a, self.b3b = Pool3d((3, 3, 3), (1, 1, 1)), Unit3d(inner, d, eps=eps)
        self.channels = a + b1 + c1 + d

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class I3D(nn.Module):
    """Video (B, 3, T, 224, 224) in [-1, 1], T of 9 or more -> logits (B, classes) averaged over time.

    Args:
        classes: number of classes.
        eps: of the batch norms: 1e-3 as trained in TensorFlow; the copy in TATS and VideoGPT has 1e-5.
    """

    def __init__(self, classes: int = 400, eps: float = 1e-3):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3d(3, 64, 7, 2, eps)
        self.MaxPool3d_2a_3x3 = Pool3d((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3d(64, 64, eps=eps)
        self.Conv3d_2c_3x3 = Unit3d(64, 192, 3, eps=eps)
        self.MaxPool3d_3a_3x3 = Pool3d((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, plan in MIXED.items():
            if len(plan) == 2:
                self.add_module(name, Pool3d((plan[0], plan[0], plan[0]), (plan[1], plan[1], plan[1])))
            else:
                block = MixedBlock(channels, plan, eps)
                self.add_module(name, block)
                channels = block.channels
        self.logits = Unit3d(channels, classes, plain=True)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name != "logits":
                x = part(x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return self.logits(x).flatten(2).mean(2)


class I3DExtractor:
    """I3D from a state dict in the layout of pytorch-i3d.

    Args:
        path: the file.
        device: where it runs.
        eps: of its batch norms.

    Raises:
        UserError: other weights (the first that is missing or wrong is named).
    """

    name = "i3d-k400"
    preprocessing = "bilinear without antialiasing to 224x224, [-1, 1]"
    least, most = 9, None
    classes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, device: torch.device, eps: float = 1e-3):
        state = read_weights(path)
        weight = state.get("logits.conv3d.weight")
        classes = weight.shape[0] if isinstance(weight, Tensor) else 400
        self.network = I3D(classes, eps)
        fill(self.network, state, path, "I3D in the layout of pytorch-i3d")
        self.network.eval().to(device)
        self.device, self.hash, self.dim = device, file_hash(path), classes

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device), INPUT, antialias=False).div_(127.5).sub_(1)
        logits = self.network(video).float()
        return Features(logits.cpu().numpy(), logits.softmax(-1).cpu().numpy())
