"""3-D ResNeXt-101 of Kinetics (Hara et al., CVPR 2018): the network of the thesis's video FID.

Read from the authors' file (`resnext-101-kinetics.pth`) or any state dict in its layout (`conv1.weight`,
`layer1.0.conv1.weight` ..., with or without `module.`). Features are the 2,048 pooled activations, as in the
evaluation of G3AN, which the thesis uses: 16 frames, 112x112, values 0..255 less the mean, not divided.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.metrics.extractors.base import Features, as_video, file_hash, resize_frames
from longtake.metrics.extractors.weights import fill, read_weights

MEAN = (114.7748, 107.7354, 99.4750)
FRAMES, SIDE, GROUPS = 16, 112, 32
DEPTHS = (3, 4, 23, 3)


class Bottleneck(nn.Module):
    """1x1x1, grouped 3x3x3, 1x1x1, and a shortcut."""

    def __init__(self, inner: int, width: int, outer: int, stride: int, groups: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(inner, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, outer, 1, bias=False), nn.BatchNorm3d(outer)
        self.downsample = None
        if stride != 1 or inner != outer:
            conv = nn.Conv3d(inner, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm3d(outer))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(h)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNeXt3d(nn.Module):
    """Clips (B, 3, 16, 112, 112) -> pooled features (B, 2048) and logits (B, classes).

    Args:
        classes: of the last layer.
        depths: blocks of the four levels; (3, 4, 23, 3) makes 101 layers.
        width: channels inside the blocks of the first level; doubled from level to level.
        groups: of the middle convolutions.
        stem: channels of the first convolution: 64 in the weights of 2018, 128 in the authors' later code.
    """

    def __init__(self, classes=400, depths=DEPTHS, width: int = 128, groups: int = GROUPS, stem: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, stem, 7, (1, 2, 2), 3, bias=False), nn.BatchNorm3d(stem)
        channels = stem
        for level, depth in enumerate(depths):
            inner, outer = width << level, 2 * width << level
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(channels, inner, outer, 2 if level and not i else 1, groups))
                channels = outer
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for name, level in self.named_children():
            if name.startswith("layer"):
                x = level(x)
        pooled = x.mean((2, 3, 4))
        return pooled, self.fc(pooled)


class ResNeXtExtractor:
    """The thesis's network from a state dict.

    Args:
        path: the file.
        device: where it runs.

    Raises:
        UserError: other weights (the first that is missing or wrong is named).
    """

    name = "resnext101-k400"
    preprocessing = "bilinear to 112x112, 0..255 less (114.7748, 107.7354, 99.4750)"
    dim: int | None = 2048
    least, most = FRAMES, FRAMES
    classes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, device: torch.device):
        state = {k.removeprefix("module."): v for k, v in read_weights(path).items()}
        self.network = ResNeXt3d(_rows(state, "fc.weight", 400), stem=_rows(state, "conv1.weight", 64))
        fill(self.network, state, path, "the 3-D ResNeXt-101 of Kinetics")
        self.network.eval().to(device)
        self.device, self.hash = device, file_hash(path)
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1, 1)

    @torch.inference_mode()
    def __call__(self, clips: np.ndarray) -> Features:
        video = resize_frames(as_video(clips, self.device), (SIDE, SIDE), antialias=False)
        pooled, logits = self.network(video - self.mean)
        return Features(pooled.float().cpu().numpy(), logits.float().softmax(-1).cpu().numpy())


def _rows(state: dict, key: str, otherwise: int) -> int:
    weight = state.get(key)
    return weight.shape[0] if isinstance(weight, Tensor) and weight.dim() > 1 else otherwise
