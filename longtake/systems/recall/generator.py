"""The three-stream generator (thesis sections 3.2 and 5.2.1; layer plan of G3AN, Wang et al., CVPR 2020).

Shapes: B batch, C channels, T H W frames, height, width; L places of a motion code. A code of L places makes
4 (L + 3) frames: 16 from one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from longtake.config import check_range
from longtake.nn.norm import BatchNorm3d

TIME_BLOCKS = 3
"""Blocks that work on time: the first makes 4 frames of a place, the next two double them."""


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator; the defaults are EncGAN3's at 64 pixels."""

    content: int = 128
    """Width of the content code (d_x)."""
    motion: int = 10
    """Width of the motion code (d_v)."""
    width: int = 64
    """Channels of the fifth block; the blocks have 8, 8, 4, 2, 1, 1/2 times as many."""
    blocks: int = 5
    """G3 blocks. The first makes a few pixels and each other doubles them: 5 for 64 pixels, 6 for 128."""
    video: Literal["1p2d", "2p1d", "3d"] = "1p2d"
    """Convolutions of the video stream: time then space ("1p2d": EncGAN3, R2), space then time ("2p1d"), or both at
    once ("3d": improved R2)."""
    attention: int | None = 4
    """Factorised self-attention after so many blocks; None: nowhere."""
    content_stream: bool = True
    """Whether there is a content stream (G_C of Tab. 3.4); the video stream sees both codes anyway."""
    motion_stream: bool = True
    """Whether there is a motion stream (G_T of Tab. 3.4)."""
    official_attention: bool = False
    """Quirk of G3AN's released code: attended values are read in a wrong order of axes, which scrambles them."""

    def __post_init__(self):
        check_range(self, "content motion width", 1)
        if self.blocks < TIME_BLOCKS:
            raise ValueError(f"blocks is {self.blocks}, but time alone takes {TIME_BLOCKS}")
        if self.attention is not None and not 1 <= self.attention <= self.blocks:
            raise ValueError(f"attention is {self.attention}; choose a block from 1 to {self.blocks}, or null")


class Geometry(NamedTuple):
    """Kernel, stride and padding of a block, each (time, height, width)."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]

    @property
    def time(self) -> Geometry:
        """The same on time alone."""
        return Geometry((self.kernel[0], 1, 1), (self.stride[0], 1, 1), (self.padding[0], 0, 0))

    @property
    def space(self) -> Geometry:
        """The same on space alone."""
        return Geometry((1, *self.kernel[1:]), (1, *self.stride[1:]), (0, *self.padding[1:]))


def transposed(in_channels: int, out_channels: int, geometry: Geometry) -> list[nn.Module]:
    """A spectrally normalised transposed convolution, batch norm and ReLU.

    Section 3.4.2 has spectral norm instead of batch norm; the released code and the published numbers of parameters
    have both.
    """
    norm = BatchNorm3d(out_channels)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return [spectral_norm(nn.ConvTranspose3d(in_channels, out_channels, *geometry)), norm, nn.ReLU(inplace=True)]


class G3Block(nn.Module):
    """Three streams, then their fusion: motion is added to the video, content is laid beside it.

    Content is (B, C, 1, H, W), motion (B, C, T, 1, 1), video (B, 2C, T, H, W): content, then video plus motion.
    """

    def __init__(self, inputs: tuple[int, int, int], channels: int, geometry: Geometry, config: GeneratorConfig):
        """`inputs`: channels of the content, video and motion stream that come in."""
        super().__init__()
        content, video, motion = inputs
        order = {
            "1p2d": (geometry.time, geometry.space),
            "2p1d": (geometry.space, geometry.time),
            "3d": (geometry,),
        }[config.video]
        units: list[nn.Module] = []
        for i, part in enumerate(order):
            units += transposed(channels if i else video, channels, part)
        self.video = nn.Sequential(*units)
        self.content = nn.Sequential(*transposed(content, channels, geometry.space)) if content else None
        self.motion = nn.Sequential(*transposed(motion, channels, geometry.time)) if motion else None

    def forward(self, content: Tensor, video: Tensor, motion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        video = self.video(video)
        if self.motion is not None:
            motion = self.motion(motion)
            video = video + motion
        if self.content is not None:
            content = self.content(content)
            video = torch.cat([content.expand(-1, -1, video.shape[2], -1, -1), video], 1)
        return content, video, motion


class AxisAttention(nn.Module):
    """Self-attention along time or over the pixels of a frame: x + gamma * attention(x), gamma starts at 0.

    Queries and keys have an eighth of the channels and are not scaled (released code of G3AN).
    """

    def __init__(self, channels: int, axis: Literal["time", "space"], official: bool = False):
        super().__init__()
        self.axis, self.official = axis, official
        narrow = max(1, channels // 8)
        self.query, self.key, self.value = (
            spectral_norm(_drawn(nn.Conv3d(channels, n, 1))) for n in (narrow, narrow, channels)
        )
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> same."""
        B, C, T, H, W = x.shape
        order = (0, 3, 4, 2, 1) if self.axis == "time" else (0, 2, 3, 4, 1)
        last = x.permute(order).contiguous()  # channels last, once: pointwise convolutions are then plain products
        rows = last.flatten(1, 2) if self.axis == "time" else last.flatten(2, 3)  # (B, rows, places, C)
        query, key, value = (
            F.linear(rows, cast(Tensor, layer.weight).flatten(1), cast(Tensor, layer.bias))
            for layer in (self.query, self.key, self.value)
        )
        attended = F.softmax(query @ key.mT, -1) @ value
        if self.official:
            return self.gamma * attended.reshape(B, H, W, C, T).permute(0, 3, 4, 1, 2) + x
        y = (self.gamma * attended).view_as(last) + last
        return y.permute(0, 4, 3, 1, 2) if self.axis == "time" else y.permute(0, 4, 1, 2, 3)


class Generator(nn.Module):
    """Codes in, a clip out. Frames are (height, width) = `size`.

    Raises ValueError if the blocks cannot make that size.
    """

    def __init__(self, config: GeneratorConfig, size: tuple[int, int]):
        super().__init__()
        self.config = config
        content, motion = config.content, config.motion
        inputs = (content * config.content_stream, content + motion, motion * config.motion_stream)
        side = first_pixels(config.blocks, size)
        self.blocks = nn.ModuleList()
        for i in range(config.blocks):
            channels = max(1, 8 * config.width >> max(0, i - 1))
            self.blocks.append(G3Block(inputs, channels, _geometry(i, side), config))
            inputs = (
                channels * config.content_stream,
                channels * (1 + config.content_stream),
                channels * config.motion_stream,
            )
            if i + 1 == config.attention:
                quirk = config.official_attention
                self.attention = nn.Sequential(
                    *(AxisAttention(inputs[1], axis, quirk) for axis in ("time", "space"))
                )
        self.to_rgb = _drawn(nn.Conv3d(inputs[1], 3, (1, 3, 3), padding=(0, 1, 1)))

    def forward(self, content: Tensor, motion: Tensor) -> Tensor:
        """Content (B, d_x) and motion (B, d_v, L) -> (B, 3, 4 (L + 3), H, W) in (-1, 1)."""
        content, motion = content[:, :, None, None, None], motion[..., None, None]
        video = torch.cat([content.expand(-1, -1, motion.shape[2], -1, -1), motion], 1)
        for i, block in enumerate(self.blocks):
            content, video, motion = block(content, video, motion)
            if i + 1 == self.config.attention:
                video = self.attention(video)
        return torch.tanh(self.to_rgb(video))


def first_pixels(blocks: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the first block makes.

    Raises:
        ValueError: that many blocks cannot make frames of that size.
    """
    factor = 2 ** (blocks - 1)
    if any(s % factor for s in size):
        raise ValueError(
            f"{blocks} blocks make frames of multiples of {factor}, not {size[0]}x{size[1]}; change one of the two"
        )
    return size[0] // factor, size[1] // factor


def _geometry(block: int, side: tuple[int, int]) -> Geometry:
    if block == 0:
        return Geometry((4, *side), (1, 1, 1), (0, 0, 0))
    if block < TIME_BLOCKS:
        return Geometry((4, 4, 4), (2, 2, 2), (1, 1, 1))
    return Geometry((1, 4, 4), (1, 2, 2), (0, 1, 1))


def _drawn(layer: nn.Conv3d) -> nn.Conv3d:
    """N(0, 0.02), as the released code draws ordinary convolutions; transposed ones keep PyTorch's way."""
    nn.init.normal_(cast(Tensor, layer.weight), std=0.02)
    return layer
