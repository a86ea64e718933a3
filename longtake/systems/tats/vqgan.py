"""The time-agnostic video VQGAN of TATS (paper sections 2.1 and 2.2; layer plan of the released code).

Shapes: B batch, T H W frames, height, width; t h w the same of the token grid; D embedding width.
Videos are (B, 3, T, H, W) in [-1, 1]. The networks work on [-0.5, 0.5] as the released weights do; the conversion
happens here, at both ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from longtake.config import check_range
from longtake.errors import UserError
from longtake.nn.conv import PaddedConv3d, PaddedConvTranspose3d, Padding, padding_amounts
from longtake.nn.norm import NormKind, make_norm
from longtake.nn.quantize import EMACodebook, Quantised, RestartBy, unquantised

RESAMPLING_KERNEL = 4
RESIDUAL_KERNEL = 3
Strides = tuple[int, int, int]


@dataclass(frozen=True)
class VQGANConfig:
    """Everything that fixes the networks; the defaults are the published 128-pixel model."""

    hidden: int = 32
    """Channels after the first convolution; they double with every halving of the frame."""
    embedding: int = 256
    """Width of a codebook entry."""
    codes: int = 16384
    """Number of codebook entries."""
    compression: tuple[int, int, int] = (4, 8, 8)
    """Frames, rows and columns that become one token; powers of two."""
    channels: int = 3
    """Channels of the video (1 for spectrograms)."""
    norm: NormKind = "batch"
    """"batch" (as published), "group" over clips (seams when decoded in windows) or "frame" by frame."""
    groups: int = 32
    """Most groups of a "group" or "frame" norm. A group of one channel loses its level: small models want few."""
    padding: Padding = field(default_factory=Padding)
    """What the convolutions see beyond the borders; time "none" means real frames (see `VQGAN.extra_frames`)."""
    official_partial_padding: bool = False
    """Quirk of the released code: `padding` reaches only first and strided convolutions, the rest replicates."""
    restart: float | None = None
    """Moving count a batch below which a code is replaced by a vector of the batch; None replaces none."""
    restart_by: RestartBy = "random"
    """Which vectors replace codes: random ones, or rather those that no code is near to."""

    def __post_init__(self):
        object.__setattr__(self, "compression", tuple(self.compression))
        check_range(self, "hidden embedding codes channels groups", 1)
        for factor in self.compression:
            if factor < 1 or factor & (factor - 1):
                raise UserError(f"compression {self.compression} has {factor}: use powers of two such as (4, 8, 8)")
        if max(self.compression) == 1:
            raise UserError("compression (1, 1, 1) compresses nothing: use powers of two such as (4, 8, 8)")
        if self.official_partial_padding and self.padding.time == "none":
            raise UserError('official_partial_padding does not go with padding.time "none": choose one of the two')

    def make_norm(self, channels: int) -> nn.Module:
        """The norm of every block."""
        return make_norm(self.norm, channels, groups=self.groups)

    @property
    def strides(self) -> list[Strides]:
        """The stride of each stage of the encoder: 2 on an axis until its factor is reached, then 1."""
        t, h, w = (int(math.log2(factor)) for factor in self.compression)
        return [(1 + (i < t), 1 + (i < h), 1 + (i < w)) for i in range(max(t, h, w))]

    @property
    def residual_padding(self) -> Padding:
        """Padding of the encoder's residual blocks."""
        return Padding() if self.official_partial_padding else self.padding

    @property
    def decoder_padding(self) -> Padding:
        """Padding of the decoder. No real latents lie beyond the ends of a decoded clip, so "none" replicates."""
        if self.official_partial_padding:
            return Padding()
        return Padding("replicate", self.padding.space) if self.padding.time == "none" else self.padding


class Reconstruction(NamedTuple):
    """What `VQGAN.forward` returns."""

    video: Tensor
    """(B, channels, T, H, W), not clamped; the frames that `VQGAN.core` cuts from the input."""
    quantised: Quantised
    """The codebook's output, with the commitment loss."""


def _same_place(x: Tensor, frames: int) -> Tensor:
    """The middle `frames` frames of `x`, on which unpadded convolutions of odd kernels are centred."""
    return x.narrow(2, (x.shape[2] - frames) // 2, frames)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), at constant width."""

    def __init__(self, channels: int, config: VQGANConfig, padding: Padding):
        super().__init__()
        self.norm1 = config.make_norm(channels)
        self.conv1 = PaddedConv3d(channels, channels, RESIDUAL_KERNEL, padding=padding)
        self.norm2 = config.make_norm(channels)
        self.conv2 = PaddedConv3d(channels, channels, RESIDUAL_KERNEL, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return _same_place(x, h.shape[2]) + h


class DownStage(nn.Module):
    """A strided convolution that doubles the channels, then a residual block."""

    def __init__(self, channels: int, stride: Strides, config: VQGANConfig):
        super().__init__()
        self.down = PaddedConv3d(channels, 2 * channels, RESAMPLING_KERNEL, stride, config.padding)
        self.residual = ResidualBlock(2 * channels, config, config.residual_padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.down(x))


class UpStage(nn.Module):
    """A transposed convolution, then two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int, stride: Strides, config: VQGANConfig):
        super().__init__()
        padding = config.decoder_padding
        self.up = PaddedConvTranspose3d(in_channels, out_channels, RESAMPLING_KERNEL, stride, padding)
        self.residuals = nn.Sequential(*(ResidualBlock(out_channels, config, padding) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.residuals(self.up(x))


class Encoder(nn.Module):
    """(B, channels, T, H, W) in [-0.5, 0.5] -> (B, D, t, h, w)."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        widths = [config.hidden << i for i in range(len(config.strides) + 1)]
        self.stem = PaddedConv3d(config.channels, widths[0], RESIDUAL_KERNEL, padding=config.padding)
        self.stages = nn.Sequential(
            *(DownStage(c, stride, config) for c, stride in zip(widths, config.strides, strict=False))
        )
        self.norm = config.make_norm(widths[-1])
        self.project = PaddedConv3d(widths[-1], config.embedding, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.norm(self.stages(self.stem(x)))))


class Decoder(nn.Module):
    """(B, D, t, h, w) -> (B, channels, T, H, W), about [-0.5, 0.5] but not bounded."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        n = len(config.strides)
        widths = [config.hidden << n, *(config.hidden << (n - i) for i in range(n))]
        self.project = PaddedConv3d(config.embedding, widths[0], 1)
        self.norm = config.make_norm(widths[0])
        self.stages = nn.Sequential(
            *(UpStage(widths[i], widths[i + 1], stride, config) for i, stride in enumerate(config.strides))
        )
        self.head = PaddedConv3d(widths[-1], config.channels, RESIDUAL_KERNEL, padding=config.decoder_padding)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.stages(F.silu(self.norm(self.project(z)))))


class VQGAN(nn.Module):
    """Video to a grid of discrete tokens and back."""

    def __init__(self, config: VQGANConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = EMACodebook(
            config.codes, config.embedding, restart=config.restart, restart_by=config.restart_by
        )
        self.decoder = Decoder(config)

    def encode(self, video: Tensor) -> Tensor:
        """`video` (B, channels, T, H, W) in [-1, 1] -> vectors before quantisation (B, D, t, h, w).

        Raises UserError if the size does not fit the compression.
        """
        self.latent_shape(*video.shape[2:])
        return self.encoder(video / 2)

    def tokenize(self, video: Tensor) -> Tensor:
        """`video` (B, channels, T, H, W) in [-1, 1] -> tokens (B, t, h, w), int64 in [0, codes)."""
        return self.codebook.nearest(self.encode(video))

    def decode_latents(self, z: Tensor) -> Tensor:
        """Quantised vectors (B, D, t, h, w) -> video (B, channels, T, H, W), about [-1, 1] but not clamped."""
        return self.decoder(z) * 2

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Tokens (B, t, h, w) -> video (B, channels, T, H, W), about [-1, 1] but not clamped."""
        return self.decode_latents(self.codebook.lookup(tokens))

    def forward(self, video: Tensor, generator: Generator | None = None, quantise: bool = True) -> Reconstruction:
        """Encodes, quantises (in training mode also updates the codebook) and decodes `video` in [-1, 1].

        Without `quantise` the decoder sees the encoder's vectors and the codebook is left alone.
        """
        z = self.encode(video)
        quantised = self.codebook(z, generator) if quantise else unquantised(z)
        return Reconstruction(self.decode_latents(quantised.values), quantised)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (t, h, w) of an input of that size; UserError if the size does not fit."""
        before, after = self.extra_frames()
        size = (frames - before - after, height, width)
        for name, n, factor in zip(("frames", "height", "width"), size, self.config.compression, strict=True):
            if n < factor or n % factor:
                extra = f" plus {before + after} extra frames" if name == "frames" and before + after else ""
                given = n + before + after if extra else n
                raise UserError(f"{name} is {given} but this VQGAN needs a positive multiple of {factor}{extra}")
        t, h, w = (n // factor for n, factor in zip(size, self.config.compression, strict=True))
        return t, h, w

    def extra_frames(self) -> tuple[int, int]:
        """Real frames needed (before, after) a clip under padding "none" in time; (0, 0) under any other.

        For t latent slices the encoder then takes before + t * compression[0] + after frames.
        """
        return encoder_context(self.config) if self.config.padding.time == "none" else (0, 0)

    def core(self, video: Tensor) -> Tensor:
        """The frames of an input (B, C, T, H, W) that its tokens stand for: all of them, less the extra frames."""
        before, after = self.extra_frames()
        return video[:, :, before : video.shape[2] - after]


def encoder_context(config: VQGANConfig) -> tuple[int, int]:
    """Frames (before, after) its own that a latent slice depends on, through all temporal layers of the encoder."""
    first, last = 0, 0  # the inputs that output slice 0 sees, walking from the last layer to the first
    residual, reach = padding_amounts(RESIDUAL_KERNEL, 1)
    for stride, _, _ in reversed(config.strides):
        first, last = first - 2 * residual, last + 2 * reach
        front, _ = padding_amounts(RESAMPLING_KERNEL, stride)
        first, last = first * stride - front, last * stride - front + RESAMPLING_KERNEL - 1
    first, last = first - residual, last + reach
    return -first, last - (config.compression[0] - 1)


def decoder_receptive_field(config: VQGANConfig) -> tuple[int, int]:
    """Latent slices (before, after) its own on which the frames of a latent slice depend, through all layers.

    That is the reach of the convolutions; group norm also takes statistics over everything it is given.
    """
    first, last = 0, config.compression[0] - 1  # frames of slice 0, walking from the last layer to the first
    front, back = padding_amounts(RESIDUAL_KERNEL, 1)
    first, last = first - front, last + back
    for stride, _, _ in reversed(config.strides):
        first, last = first - 4 * front, last + 4 * back  # two residual blocks of two convolutions
        padded, _ = padding_amounts(RESAMPLING_KERNEL, stride)
        # Output o takes the inputs i with 0 <= o + kernel - 1 - (i + padded) * stride < kernel.
        first, last = -(-first // stride) - padded, (last + RESAMPLING_KERNEL - 1) // stride - padded
    return -first, last


class WindowedDecoder:
    """Decodes a token stream of any length in constant memory, equal to decoding all of it at once.

    Tokens are decoded in windows of `window` latent slices which start at the absolute slices 0, stride, 2 * stride
    ..., stride = window - the receptive field; of each window only the slices whose receptive field it covers are
    kept (the first also keeps its beginning). The last window ends with the stream. So the windows depend on the
    length of the stream alone: however the tokens are pushed, the frames are the same bit for bit. They equal one
    decoding of the whole stream within rounding, also at its two ends; not with group norm, whose statistics are
    those of a window, nor within a receptive field of the ends with circular padding in time, which joins the ends
    of a window.
    """

    def __init__(self, vqgan: VQGAN, window: int):
        """`vqgan` in eval mode; raises UserError if `window` is no longer than the receptive field."""
        self.vqgan, self.window = vqgan, window
        self.before, self.after = decoder_receptive_field(vqgan.config)
        self.stride = window - self.before - self.after
        if self.stride < 1:
            raise UserError(
                f"a decoding window of {window} latent slices is too short: "
                f"use at least {self.before + self.after + 1}, and twice that to be fast"
            )
        self.reset()

    def reset(self) -> None:
        """Forgets the stream, to begin another."""
        self.held: Tensor | None = None  # the last tokens pushed, at least a window of them once there are so many
        self.end = 0  # slices pushed so far
        self.start = 0  # slice at which the next full window begins
        self.done = 0  # slices whose frames have been returned

    def push(self, tokens: Tensor) -> Tensor:
        """Takes the next tokens (B, n, h, w); returns the frames ready now (B, channels, T, H, W), T may be 0."""
        self.held = tokens if self.held is None else torch.cat([self.held, tokens], 1)
        self.end += tokens.shape[1]
        ready = [self._nothing(tokens)]
        # The window that ends the stream is left to `flush`, so a full one waits until a token follows it.
        while self.end > self.start + self.window:
            ready.append(self._decode(self.held, self.start, self.start + self.window - self.after))
            self.start += self.stride
        self.held = self.held[:, -max(self.window, self.end - self.start) :]
        return torch.cat(ready, 2)

    def flush(self) -> Tensor:
        """Ends the stream: returns the remaining frames (B, channels, T, H, W) and is ready for another."""
        if self.held is None:
            raise ValueError("flush() before any tokens were pushed")
        frames = self._decode(self.held, max(0, self.end - self.window), self.end)
        self.reset()
        return frames

    @torch.no_grad()
    def _decode(self, held: Tensor, start: int, stop: int) -> Tensor:
        """Decodes the window at slice `start`; returns its frames from slice `done` to `stop`."""
        offset = start - (self.end - held.shape[1])
        video = self.vqgan.detokenize(held[:, offset : offset + self.window])
        factor = self.vqgan.config.compression[0]
        frames = video[:, :, (self.done - start) * factor : (stop - start) * factor]
        self.done = stop
        return frames

    def _nothing(self, tokens: Tensor) -> Tensor:
        c = self.vqgan.config
        _, h, w = c.compression
        weight = self.vqgan.decoder.head.weight
        return weight.new_empty(len(tokens), c.channels, 0, tokens.shape[2] * h, tokens.shape[3] * w)
