"""The holistic discriminator of a few frames and the gaps between them (paper section 3.2, Fig. 6), and MoCoGAN's.

Shapes: B videos, F frames each, N = B * F images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from longtake.config import check_range
from longtake.nn.norm import BatchNorm3d
from longtake.systems.stylegan_v.layers import EqualConv2d, EqualLinear, full_precision, unit_moment
from longtake.systems.stylegan_v.synthesis import channels, resolutions


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Who judges."""

    kind: Literal["holistic", "image+video"] = "holistic"
    """One discriminator of all frames of a clip, or MoCoGAN-SG2's two: StyleGAN2's of single frames and one of 3-D
    convolutions ("w/o our D" in Tab. 2)."""
    base: int = 16_384
    """Channels times height of a resolution, where that gives fewer than `most`."""
    most: int = 512
    """Most channels."""
    join: int = 16
    """Height from which on the frames of a clip are seen as one."""
    divisor: int = 2
    """What the channels of a frame are divided by before they are joined (2 in the released code, 1 in the
    text)."""
    time: bool = True
    """Whether it is told the gaps between frames ("w/o time conditioning" in Tab. 2)."""
    gaps: int = 1024
    """Gaps that it tells apart; longer ones count as the longest."""
    embedding: int = 256
    """Width of what is learned of a gap."""
    layers: int = 2
    """Layers of the mapping of gaps and labels."""
    labels: Literal["apart", "joined"] = "apart"
    """How it is told the class beside the gaps: by an embedding of its own, as the generator is, or one-hot among
    the some 100 numbers that say the gaps, as released; it is then nearly blind to the class at the beginning."""
    group: int = 4
    """Most videos over which their deviation is taken."""
    clamp: float | None = None
    """Largest activation; 256 in the released models of mixed precision."""
    video_width: int = 64
    """Channels of the first layer of MoCoGAN's video discriminator; they double three times."""

    def __post_init__(self):
        check_range(self, "base most join divisor embedding layers group video_width", 1)
        check_range(self, "gaps", 2)


class ResidualBlock(nn.Module):
    """Halves the resolution: (N, C, H, W) -> (N, C', H/2, W/2)."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, clamp: float | None):
        super().__init__()
        self.skip = EqualConv2d(in_channels, out_channels, 1, down=True, active=False)
        self.conv0 = EqualConv2d(in_channels, middle, 3, clamp=clamp)
        self.conv1 = EqualConv2d(middle, out_channels, 3, down=True, clamp=clamp)

    def forward(self, x: Tensor) -> Tensor:
        half = math.sqrt(0.5)
        return self.skip(x, half) + self.conv1(self.conv0(x), half)


class GapEncoding(nn.Module):
    """Gaps (B, n) in frames -> (B, n, embedding + 2 * octaves): a learned vector for the rounded gap, and the sines
    and cosines of the gap itself at octaves of half a wave over the longest gap."""

    def __init__(self, gaps: int, embedding: int):
        super().__init__()
        self.table = nn.Embedding(gaps, embedding)
        self.octaves = math.ceil(math.log2(gaps))

    @property
    def width(self) -> int:
        """Numbers a gap."""
        return self.table.embedding_dim + 2 * self.octaves

    def forward(self, gaps: Tensor) -> Tensor:
        count, dtype = self.table.num_embeddings, self.table.weight.dtype
        learned = self.table(gaps.round().long().clamp(0, count - 1))
        octaves = 2.0 ** torch.arange(self.octaves, device=gaps.device, dtype=torch.float32)
        angle = gaps.to(dtype).unsqueeze(-1) * (octaves * (math.pi / count)).to(dtype)
        return torch.cat([learned, angle.sin(), angle.cos()], -1)


class ConditionMapping(nn.Module):
    """What is known of a clip (B, C), and its label (B, classes) where that comes apart -> the vector its features
    are projected on (B, width)."""

    def __init__(self, known: int, width: int, layers: int, classes: int = 0):
        super().__init__()
        self.embed = EqualLinear(known, width)
        self.embed_label = EqualLinear(classes, width) if classes else None
        widths = [width * (2 if classes else 1)] + [width] * layers
        self.layers = nn.Sequential(*(EqualLinear(a, b, rate=0.01, active=True) for a, b in pairwise(widths)))

    @full_precision
    def forward(self, known: Tensor, label: Tensor | None = None) -> Tensor:
        x = unit_moment(self.embed(known))
        if self.embed_label is not None:
            assert label is not None
            x = torch.cat([x, unit_moment(self.embed_label(label.to(x.dtype)))], 1)
        return self.layers(x)


class Head(nn.Module):
    """Features of a clip (B, C, h, w) to `out` numbers: deviation over the batch, a convolution, two linear
    layers."""

    def __init__(self, width: int, grid: tuple[int, int], out: int, group: int, clamp: float | None):
        super().__init__()
        self.group = group
        self.conv = EqualConv2d(width + 1, width, 3, clamp=clamp)
        self.linear = EqualLinear(width * grid[0] * grid[1], width, active=True)
        self.out = EqualLinear(width, out)

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, batch_deviation(x, self.group)], 1)
        return self.out(self.linear(self.conv(x).flatten(1)))


def batch_deviation(x: Tensor, most: int) -> Tensor:
    """Mean standard deviation (B, 1, h, w) of features over groups of `most` videos, or the next smaller divisor of
    B (minibatch standard deviation, Karras et al., ICLR 2018)."""
    b = len(x)
    group = max(n for n in range(1, most + 1) if b % n == 0)
    parts = x.reshape(group, b // group, -1)
    deviation = ((parts - parts.mean(0)).square().mean(0) + 1e-8).sqrt().mean(1)
    return deviation.repeat(group).view(b, 1, 1, 1).expand(-1, 1, *x.shape[2:])


class Discriminator(nn.Module):
    """One logit a clip.

    Frames are seen one by one down to height `join`; there their features are joined along the channels and seen as
    one. The logit is the product of the clip's features with a mapping of gaps and labels, over the root of its
    width (released code). Gaps are put together before the mapping as in the released code; the text maps each by
    itself.
    """

    def __init__(self, config: DiscriminatorConfig, size: tuple[int, int], frames: int, classes: int = 0):
        super().__init__()
        self.config, self.count, self.classes = config, frames, classes
        grids = resolutions(size)[::-1]  # finest first
        widths = [channels(config.base, config.most, grid) for grid in grids]
        self.join = next((i for i, grid in enumerate(grids) if grid[0] <= config.join), len(grids) - 1)
        into = list(widths)  # channels that enter each level, of a frame or of all
        if frames > 1:
            into[self.join] = max(1, widths[self.join] // config.divisor)
        self.rgb = EqualConv2d(3, into[0], 1, clamp=config.clamp)
        blocks = []
        for i in range(len(grids) - 1):
            entering = into[i] * (frames if i == self.join else 1)
            blocks.append(ResidualBlock(entering, widths[i], into[i + 1], config.clamp))
        self.blocks = nn.ModuleList(blocks)
        self.gaps = GapEncoding(config.gaps, config.embedding) if config.time and frames > 1 else None
        self.apart = bool(classes and self.gaps and config.labels == "apart")
        known = (0 if self.apart else classes) + (self.gaps.width * (frames - 1) if self.gaps else 0)
        apart = classes if self.apart else 0
        self.condition = ConditionMapping(known, widths[-1], config.layers, apart) if known else None
        last = into[-1] * frames if self.join == len(grids) - 1 else widths[-1]
        self.head = Head(last, grids[-1], widths[-1] if known else 1, config.group, config.clamp)

    def forward(self, frames: Tensor, times: Tensor, label: Tensor) -> Tensor:
        """Logits (B,), higher is more real.

        Args:
            frames: (B, 3, F, H, W) in [-1, 1].
            times: (B, F) in frames; only their differences count.
            label: one-hot (B, classes).
        """
        x = self.rgb(frames.transpose(1, 2).flatten(0, 1))
        for i, block in enumerate(self.blocks):
            if i == self.join:
                x = self._joined(x)
            x = block(x)
        if self.join == len(self.blocks):
            x = self._joined(x)
        out = self.head(x)
        if self.condition is None:
            return out[:, 0]
        condition = self.condition(self.known(times, label), label)
        return (out * condition).sum(1) / math.sqrt(out.shape[1])

    def _joined(self, x: Tensor) -> Tensor:
        """(B * F, C, h, w) -> (B, F * C, h, w)."""
        return x.unflatten(0, (-1, self.count)).flatten(1, 2)

    def known(self, times: Tensor, label: Tensor) -> Tensor:
        """Encoded gaps of clips, behind their labels where these do not come apart: (B, C)."""
        if self.gaps is None:
            return label
        gaps = self.gaps(times.diff(dim=1)).flatten(1)
        return torch.cat([label.to(gaps.dtype), gaps], 1) if self.classes and not self.apart else gaps


class VideoDiscriminator(nn.Module):
    """MoCoGAN's discriminator of 16 consecutive frames, as the released StyleGAN-V code has it.

    Noise of deviation 0.1, then four 3-D convolutions of kernel 4 that halve height and width while these are 8 or
    more, without padding in time, batch norm after all but the first, leaky ReLU; at 256 pixels and more two
    further ones of kernel 3; a last one of kernel 4 makes logits of patches. Its learning rate is not equalised.
    """

    NOISE = 0.1

    def __init__(self, size: tuple[int, int], width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        into, side = 3, min(size)
        for i in range(4):
            out, halves = width << i, side >= 8
            kernel, stride = ((4, 4, 4), (1, 2, 2)) if halves else ((4, 3, 3), (1, 1, 1))
            layers.append(nn.Conv3d(into, out, kernel, stride, padding=(0, 1, 1), bias=False))
            layers += [BatchNorm3d(out)] if i else []
            layers.append(nn.LeakyReLU(0.2))
            into, side = out, side // 2 if halves else side
        if min(size) >= 256:
            for _ in range(2):
                layers += [nn.Conv3d(into, into, 3, padding=1, bias=False), BatchNorm3d(into), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv3d(into, 1, (4, min(4, side), min(4, side)), bias=False))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, 0, 0.02)
            elif isinstance(layer, BatchNorm3d):
                nn.init.normal_(layer.weight, 1, 0.02)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (B, 1, t, h, w) of clips (B, 3, F, H, W) in [-1, 1], F >= 16."""
        return self.layers(frames + self.NOISE * torch.randn_like(frames))
