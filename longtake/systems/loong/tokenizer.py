"""The causal 3-D convolutional tokenizer of Loong, in the manner of MAGVIT-v2 (paper sections 3.1 and 4.1).

The paper says little more than that; the layer plan is that of MAGVIT-v2 (Yu et al., ICLR 2024, appendix A) as its
public reproductions have it. The first frame stands apart: nothing after it reaches its token slice, and all
further frames are coded by fours (`compression[0]`), so a picture is a video of one frame.

Shapes: B batch; F frames, H height, W width; t = 1 + (F - 1) / 4 latent slices, h w rows and columns of tokens;
D embedding width. Videos are (B, 3, F, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from longtake.config import check_range
from longtake.errors import UserError
from longtake.nn.norm import FrameNorm
from longtake.nn.quantize import EMACodebook, Quantised
from longtake.systems.loong.quantize import ClusteringCodebook, Similarity

Stride = tuple[int, int]  # frames, and rows as well as columns


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that fixes the tokenizer's networks; the defaults have the published size."""

    width: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of each level, in `width`s; between two levels the frame is halved."""
    blocks: int = 3
    """Residual blocks a level."""
    middle: int = 1
    """Residual blocks at the coarsest level, at the end of the encoder and the start of the decoder."""
    embedding: int = 256
    """Width of a code."""
    codes: int = 8192
    """Number of codes."""
    compression: tuple[int, int, int] = (4, 8, 8)
    """Frames (after the first), rows and columns that become one token; powers of two."""
    groups: int = 32
    """Most groups of a norm."""
    quantiser: Literal["cvq", "vq", "ema"] = "cvq"
    """Clustering VQ (the paper's), plain VQ, or moving averages with restarts."""
    similarity: Similarity = "cosine"
    """By what "cvq" and "vq" choose a code: the cosine, or its distance."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    separate_first: bool = False
    """Give the first frame 2-D convolutions of its own at the input and the output; without, causal padding alone
    sets it apart."""

    def __post_init__(self):
        check_range(self, "width multipliers blocks embedding codes groups", 1)
        time, rows, columns = self.compression
        if rows != columns or any(c < 1 or c & (c - 1) for c in self.compression):
            raise ValueError(
                f"compression {self.compression} must be powers of two, rows as columns, like (4, 8, 8)"
            )
        if max(time, rows) != 1 << (len(self.multipliers) - 1):
            halvings = len(self.multipliers) - 1
            raise ValueError(f"multipliers for {halvings} halvings do not fit a compression of {self.compression}")

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * m for m in self.multipliers]

    @property
    def strides(self) -> list[Stride]:
        """(frames, pixels) stride between each level and the next: pixels from the finest level on, frames last."""
        halvings = len(self.multipliers) - 1
        pixels, frames = int(math.log2(self.compression[1])), int(math.log2(self.compression[0]))
        return [(1 + (i >= halvings - frames), 1 + (i < pixels)) for i in range(halvings)]

    def make_norm(self, channels: int) -> nn.Module:
        """Group norm of each frame by itself: over all frames it would tell the past of the future."""
        return FrameNorm(math.gcd(self.groups, channels), channels, eps=1e-6)


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that sees no later frame: zeros before the first, none after the last.

    With a stride in time of 2, F frames become 1 + (F - 1) / 2, and the first output sees the first frame alone.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: Stride = (1, 1), bias: bool = True):
        super().__init__(
            channels, out, kernel, (stride[0], stride[1], stride[1]), (0, kernel // 2, kernel // 2), bias=bias
        )

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))


class EdgeConv3d(CausalConv3d):
    """The first or last layer: causal, and with a 2-D convolution for the first frame if it has one of its own."""

    def __init__(self, channels: int, out: int, separate: bool):
        super().__init__(channels, out)
        self.first = nn.Conv2d(channels, out, 3, padding=1) if separate else None

    def forward(self, input: Tensor) -> Tensor:
        if self.first is None:
            return super().forward(input)
        later = super().forward(input)[:, :, 1:]
        return torch.cat([self.first(input[:, :, 0]).unsqueeze(2), later], 2)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int, out: int, config: TokenizerConfig):
        super().__init__()
        self.norm1, self.conv1 = config.make_norm(channels), CausalConv3d(channels, out, bias=False)
        self.norm2, self.conv2 = config.make_norm(out), CausalConv3d(out, out, bias=False)
        self.shortcut = CausalConv3d(channels, out, 1, bias=False) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


def _level(channels: int, out: int, config: TokenizerConfig) -> nn.Sequential:
    """The residual blocks of one level; the first changes the width."""
    return nn.Sequential(*(ResidualBlock(channels if i == 0 else out, out, config) for i in range(config.blocks)))


class Encoder(nn.Module):
    """(B, 3, F, H, W) -> (B, D, t, h, w)."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = config.widths
        self.stem = EdgeConv3d(3, widths[0], config.separate_first)
        layers: list[nn.Module] = [_level(widths[0], widths[0], config)]
        for before, after, stride in zip(widths, widths[1:], config.strides, strict=False):
            layers += [CausalConv3d(before, before, stride=stride), _level(before, after, config)]
        layers += [ResidualBlock(widths[-1], widths[-1], config) for _ in range(config.middle)]
        self.layers = nn.Sequential(*layers)
        self.norm = config.make_norm(widths[-1])
        self.project = CausalConv3d(widths[-1], config.embedding, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.norm(self.layers(self.stem(x)))))


class AdaptiveNorm(nn.Module):
    """Per-frame group norm whose scale and shift at each place come from the latent vector above it."""

    def __init__(self, channels: int, frames: int, config: TokenizerConfig):
        """`frames` a latent slice at this level."""
        super().__init__()
        self.frames = frames
        self.norm = FrameNorm(math.gcd(config.groups, channels), channels, eps=1e-6, affine=False)
        self.modulation = CausalConv3d(config.embedding, 2 * channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (B, C, 1 + frames (t - 1), H', W'), z (B, D, t, h, w)."""
        frames, rows, columns = self.frames, x.shape[3] // z.shape[3], x.shape[4] // z.shape[4]
        wide = self.modulation(z).repeat_interleave(frames, 2)[:, :, frames - 1 :]
        scale, shift = wide.repeat_interleave(rows, 3).repeat_interleave(columns, 4).chunk(2, 1)
        return self.norm(x) * (1 + scale) + shift


class Upsample(nn.Module):
    """A causal convolution whose channels become frames and pixels; of doubled frames the very first is dropped, so
    F frames become 1 + 2 (F - 1)."""

    def __init__(self, channels: int, stride: Stride):
        super().__init__()
        self.stride = stride
        self.conv = CausalConv3d(channels, channels * stride[0] * stride[1] ** 2)

    def forward(self, x: Tensor) -> Tensor:
        time, space = self.stride
        x = self.conv(x).unflatten(1, (-1, time, space, space))  # (B, C, time, space, space, F, H, W)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, time - 1 :]


class Decoder(nn.Module):
    """(B, D, t, h, w) -> (B, 3, F, H, W), about [-1, 1] but not bounded."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = config.widths[::-1]
        self.stem = CausalConv3d(config.embedding, widths[0])
        self.middle = nn.Sequential(*(ResidualBlock(widths[0], widths[0], config) for _ in range(config.middle)))
        inputs = [widths[0], *widths[:-1]]
        strides = config.strides[::-1]
        frames = [math.prod(time for time, _ in strides[:i]) for i in range(len(widths))]
        self.norms = nn.ModuleList(AdaptiveNorm(c, f, config) for c, f in zip(inputs, frames, strict=True))
        self.levels = nn.ModuleList(_level(c, out, config) for c, out in zip(inputs, widths, strict=True))
        self.ups = nn.ModuleList(Upsample(c, s) for c, s in zip(widths, strides, strict=False))
        self.norm = config.make_norm(widths[-1])
        self.head = EdgeConv3d(widths[-1], 3, config.separate_first)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.stem(z))
        for i, (norm, level) in enumerate(zip(self.norms, self.levels, strict=True)):
            x = level(norm(x, z))
            if i < len(self.ups):
                x = self.ups[i](x)
        return self.head(F.silu(self.norm(x)))


class Reconstruction(NamedTuple):
    """What `Tokenizer.forward` returns."""

    video: Tensor
    """(B, 3, F, H, W), not clamped."""
    quantised: Quantised
    """The codebook's output, with its loss."""


class Tokenizer(nn.Module):
    """Pictures and videos to grids of tokens and back, causally: the tokens of a video's beginning are the
    beginning of its tokens, and the same holds for decoded frames."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = (
            EMACodebook(config.codes, config.embedding, commitment=config.commitment, restart=0.5)
            if config.quantiser == "ema"
            else ClusteringCodebook(
                config.codes, config.embedding, config.commitment, config.similarity, config.quantiser == "cvq"
            )
        )
        self.decoder = Decoder(config)

    def encode(self, video: Tensor) -> Tensor:
        """`video` (B, 3, F, H, W) in [-1, 1] -> vectors before quantisation (B, D, t, h, w).

        Raises UserError if the size does not fit the compression.
        """
        self.grid(*video.shape[2:])
        return self.encoder(video.to(self.decoder.stem.weight.dtype))

    def tokenize(self, video: Tensor) -> Tensor:
        """`video` (B, 3, F, H, W) in [-1, 1] -> tokens (B, t, h, w), int64 in [0, codes)."""
        return self.codebook.nearest(self.encode(video))

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Tokens (B, t, h, w) -> video (B, 3, F, H, W), about [-1, 1] but not clamped."""
        return self.decoder(self.codebook.lookup(tokens))

    def forward(self, video: Tensor, generator: Generator | None = None) -> Reconstruction:
        """Encodes, quantises (in training mode also updates the codebook) and decodes `video` in [-1, 1]."""
        quantised = self.codebook(self.encode(video), generator)
        return Reconstruction(self.decoder(quantised.values), quantised)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (t, h, w) of a video of that size.

        Raises:
            UserError: the frames are not 1 + a multiple of the compression, or the size is no multiple of it.
        """
        _, rows, columns = self.config.compression
        for name, n, factor in (("height", height, rows), ("width", width, columns)):
            if n < factor or n % factor:
                raise UserError(f"{name} is {n} but this tokenizer needs a multiple of {factor}", code=2)
        return self.latents(frames), height // rows, width // columns

    def latents(self, frames: int) -> int:
        """Latent slices of so many frames: 65 -> 17 at a compression of 4 in time.

        Raises:
            UserError: not 1 + a multiple of the compression.
        """
        time = self.config.compression[0]
        if frames < 1 or (frames - 1) % time:
            raise UserError(
                f"{frames} frames do not fit this tokenizer, which takes 1 and then {time} at a time; "
                f"use {1 + (max(frames, 1) - 1) // time * time}",
                code=2,
            )
        return 1 + (frames - 1) // time

    def frames(self, latents: int) -> int:
        """Frames of so many latent slices: 17 -> 65 at a compression of 4 in time; none -> none."""
        return 1 + (latents - 1) * self.config.compression[0] if latents else 0
