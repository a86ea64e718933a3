"""The two-stream encoder (thesis sections 3.2 and 3.4.2).

The thesis names neither kernels nor widths; those of TwoStreamVAN (Sun et al., WACV 2020), which has the same plan
of layers, give its published number of parameters. Shapes: B clips, T frames, H W height, width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.config import check_range
from longtake.nn.norm import BatchNorm1d, BatchNorm2d
from longtake.systems.recall.latents import CLIP, LOGVAR_RANGE, LatentSpace, difference_maps

Stream = Literal["content", "motion"]
LEAST_HALVINGS = 3
"""Of a frame, even if it is small."""


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder; the defaults give the published number of parameters."""

    width: int = 16
    """Channels of the first and the last convolution; those between have twice as many."""
    features: int = 512
    """Features of a content frame."""
    embedding: int = 128
    """Features of a difference map, of a pair of them, and of all (E, P, A, B of the docs)."""
    head: int = 256
    """Width between the motion features and their mean and variance."""
    norm: Literal["batch", "layer"] = "batch"
    """After fully connected layers. Batch norm (the thesis) needs two or more clips a pass."""

    def __post_init__(self):
        check_range(self, "width features embedding head", 1)


class DenseSet(nn.Sequential):
    """A fully connected layer, a norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: str):
        layer = BatchNorm1d(outputs) if norm == "batch" else nn.LayerNorm(outputs)
        super().__init__(nn.Linear(inputs, outputs), layer, nn.ReLU(inplace=True))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return [layer, BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def halvings_of(blocks: int) -> int:
    """How often a frame is halved: to 8x8 from 64 and from 128 pixels."""
    return max(LEAST_HALVINGS, blocks - 2)


class FrameFeatures(nn.Module):
    """Frames or difference maps (N, 3, H, W) -> features (N, C), by six convolutions and a fully connected layer.

    A content level ends in a convolution of stride 2, a motion level in a maximum over 2x2; one level and one fully
    connected layer more at 128 pixels.
    """

    def __init__(self, stream: Stream, features: int, blocks: int, size: tuple[int, int], config: EncoderConfig):
        super().__init__()
        levels, side, inputs, wide = halvings_of(blocks), size, 3, 2 * config.width
        units: list[nn.Module] = []
        for i in range(levels):
            outputs = config.width if i in (0, levels - 1) else wide
            if stream == "content":
                units += _convolution(inputs, inputs if i else config.width, 3)
                units += _convolution(inputs if i else config.width, outputs, 3, stride=2)
                side = (-(-side[0] // 2), -(-side[1] // 2))
            else:
                between, kernel = wide if i else config.width, 7 if i == levels - 1 else 5
                units += [*_convolution(inputs, between, kernel), *_convolution(between, outputs, kernel)]
                units.append(nn.MaxPool2d(2))
                side = (side[0] // 2, side[1] // 2)
            inputs = outputs
        self.convolutions = nn.Sequential(*units)
        dense = [DenseSet(inputs * side[0] * side[1], features, config.norm)]
        dense += [DenseSet(features, features, config.norm) for _ in range(levels - LEAST_HALVINGS)]
        self.dense = nn.Sequential(*dense)

    def forward(self, frames: Tensor) -> Tensor:
        return self.dense(self.convolutions(frames).flatten(1))


class MotionHead(nn.Sequential):
    """Features -> a mean or a log-variance, by two fully connected layers."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


class Heads(nn.Module):
    """Content and motion features (B, C) -> latent spaces."""

    def __init__(self, content: int, motion: int, hidden: int, codes: tuple[int, int]):
        super().__init__()
        self.content = nn.ModuleList(nn.Linear(content, codes[0]) for _ in range(2))
        self.motion = nn.ModuleList(MotionHead(motion, hidden, codes[1]) for _ in range(2))

    def forward(self, content: Tensor, motion: Tensor) -> LatentSpace:
        mean_x, logvar_x = (head(content) for head in self.content)
        mean_v, logvar_v = (head(motion) for head in self.motion)
        return LatentSpace(mean_x, logvar_x.clamp(*LOGVAR_RANGE), mean_v, logvar_v.clamp(*LOGVAR_RANGE))


class Encoder(nn.Module):
    """Clips (B, 3, 16, H, W) in [-1, 1] -> latent spaces.

    Content is read off frame `reference`: the first in EncGAN3, the eighth in its successors. Of the 15 difference
    maps' features each two neighbours become one, the last stays alone, and all are laid side by side.
    """

    def __init__(
        self, config: EncoderConfig, codes: tuple[int, int], blocks: int, size: tuple[int, int], reference: int = 0
    ):
        """`codes`: widths of the content and the motion code; `blocks`: the generator's."""
        super().__init__()
        self.reference = reference
        e, pairs = config.embedding, (CLIP - 1) // 2
        self.content = FrameFeatures("content", config.features, blocks, size, config)
        self.motion = FrameFeatures("motion", e, blocks, size, config)
        self.pair = nn.Linear(2 * e, e)
        self.mix = nn.Sequential(DenseSet((pairs + 1) * e, e, config.norm), DenseSet(e, e, config.norm))
        self.heads = Heads(config.features, e, config.head, codes)

    def forward(self, clip: Tensor) -> LatentSpace:
        maps = difference_maps(clip).transpose(1, 2)  # (B, 15, 3, H, W)
        embedded = self.motion(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        paired = self.pair(embedded[:, :-1].unflatten(1, (-1, 2)).flatten(2))
        motion = self.mix(torch.cat([paired, embedded[:, -1:]], 1).flatten(1))
        return self.heads(self.content(clip[:, :, self.reference]), motion)
