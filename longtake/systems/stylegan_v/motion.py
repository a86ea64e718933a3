"""The motion mapping F_m and the acyclic positional encoding: noise to motion codes at any time (paper section
3.1).

Motion noise lies on a grid of tokens, `spacing` frames apart; token j stands at time j * spacing. Codes at a time
depend on the two tokens u around it, and a token u_j on the noise j ... j + reach. So any stretch of a video can be
made from the noise of its neighbourhood alone.

Shapes: B videos, n tokens, F frames of a video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.config import check_range
from longtake.systems.stylegan_v.layers import SLOPE, EqualConv1d, EqualLinear, full_precision

RATE = 0.01
"""Learning rate of the motion mapping in proportion to the rest."""


@dataclass(frozen=True)
class MotionConfig:
    """F_m and what becomes of its tokens."""

    codes: Literal["acyclic", "lstm"] = "acyclic"
    """"acyclic": convolutions without padding and acyclic positional encoding. "lstm": the ablation of Tab. 2, the
    states of an LSTM, linear in between."""
    into: Literal["input", "styles"] = "input"
    """Where codes enter the synthesis: beside its constant input, or beside the style of every layer (MoCoGAN)."""
    noise: int = 512
    """Width of the motion noise."""
    width: int = 512
    """Width of a token u."""
    waves: int = 256
    """Sines of the encoding; a motion code has twice as many numbers."""
    kernel: int = 11
    """Kernel of the two convolutions."""
    spacing: float = 16.0
    """Frames between two tokens (delta^z; SkyTimelapse: 256)."""
    shortest: float = 16.0
    """Shortest period in frames before tokens change it (released code: always the spacing)."""
    longest: float = 1024.0
    """Longest period."""

    def __post_init__(self):
        check_range(self, "noise width waves kernel", 1)
        check_range(self, "spacing shortest longest", 0)
        if self.spacing <= 0 or not 0 < self.shortest <= self.longest:
            raise ValueError("motion needs a spacing above 0 and periods with 0 < shortest <= longest")

    @property
    def code(self) -> int:
        """Numbers of a motion code."""
        return 2 * self.waves if self.codes == "acyclic" else self.width


class Waves(NamedTuple):
    """What the encoding reads off tokens: (B, n, ...) each, in double precision where the device has it."""

    frequency: Tensor
    """(B, n, waves) in radians a frame"""
    phase: Tensor
    """(B, n, waves)"""
    align: Tensor
    """(B, n, 2 * waves)"""


def finest(device: torch.device) -> torch.dtype:
    """The type of times and phases: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def around(times: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """The token before each time (int64) and how far (0 to 1) the next one is behind it."""
    place = times / spacing
    left = place.floor()
    return left.long(), place - left


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, n, C) at `index` (B, F): (B, F, C)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class AcyclicEncoding(nn.Module):
    """Equations 2 to 5 of the paper: sines whose frequency and phase every token sets anew, stitched together.

    Followed is the released code where it differs, because the published models have it: periods (not coefficients)
    are spaced evenly, in octaves, from the longest to the shortest; phases are scaled by longest/period; sines come
    with their cosines and without the amplitudes of equation 3. Times enter in absolute terms; phases are computed
    in double precision, because float32 is off by 0.005 radians after an hour.
    """

    def __init__(self, config: MotionConfig):
        super().__init__()
        width, waves = config.width, config.waves
        self.spacing = config.spacing
        self.frequency = EqualLinear(width, waves, bias=None)
        self.phase = EqualLinear(width, waves, bias=None)
        self.align = EqualLinear(width, 2 * waves, bias=None)
        shortest, longest = math.log2(config.shortest), math.log2(config.longest)
        octaves = torch.linspace(longest, shortest, waves, dtype=torch.float64, device="cpu")
        # In float32 as released, but no buffers: they must keep that when the networks' precision is lowered.
        self.base = (2 * math.pi / 2**octaves).float()
        self.factor = config.longest / (2 * math.pi / self.base)

    def waves(self, u: Tensor) -> Waves:
        """Tokens u (B, n, width) -> their waves."""
        wide = finest(u.device)
        base, factor = self.base.to(u.device, wide), self.factor.to(u.device, wide)
        frequency = (torch.tanh(self.frequency(u).to(wide)) + 1) * base
        return Waves(frequency, self.phase(u).to(wide) * factor, self.align(u).to(wide))

    def forward(self, waves: Waves, first: Tensor, times: Tensor) -> Tensor:
        """Motion codes (B, F, 2 * waves) at `times` (B, F); `first` (B,) is the number of the first token."""
        times = times.to(waves.phase.dtype)
        left, share = around(times, self.spacing)
        index, share = left - first.view(-1, 1), share.unsqueeze(-1)
        frequency, phase = pick(waves.frequency, index), pick(waves.phase, index)

        def raw(at: Tensor) -> Tensor:
            angle = frequency * at.unsqueeze(-1) + phase
            return torch.cat([angle.sin(), angle.cos()], -1)

        begin = left.to(times.dtype) * self.spacing
        stitch = torch.lerp(raw(begin), raw(begin + self.spacing), share)
        align = torch.lerp(pick(waves.align, index), pick(waves.align, index + 1), share)
        return raw(times) - stitch + align


class AcyclicMotion(nn.Module):
    """Two convolutions without padding over the noise, then the encoding of the tokens around each time."""

    def __init__(self, config: MotionConfig, classes: int = 0):
        super().__init__()
        self.config, self.classes = config, classes
        self.conv1 = EqualConv1d(config.noise + classes, config.noise, config.kernel, RATE)
        self.conv2 = EqualConv1d(config.noise, config.width, config.kernel, RATE)
        self.encoding = AcyclicEncoding(config)

    @property
    def reach(self) -> int:
        """Noise tokens after its own that a token depends on."""
        return 2 * (self.config.kernel - 1)

    @full_precision
    def tokens(self, noise: Tensor, label: Tensor) -> Tensor:
        """Noise (B, n + reach, noise) and one-hot labels (B, classes) -> tokens u (B, n, width)."""
        x = with_label(noise, label, self.classes).transpose(1, 2)
        x = F.leaky_relu(self.conv1(x), SLOPE)
        return F.leaky_relu(self.conv2(x), SLOPE).transpose(1, 2)

    @full_precision
    def forward(self, noise: Tensor, label: Tensor, first: Tensor, times: Tensor) -> Tensor:
        """Motion codes (B, F, code).

        Args:
            noise: (B, n + reach, noise) of the tokens from `first` on, up to the one after the last time.
            label: one-hot (B, classes).
            first: (B,) number of the first token.
            times: (B, F) in frames, any real numbers within the tokens.
        """
        return self.encoding(self.encoding.waves(self.tokens(noise, label)), first, times).to(noise.dtype)


class RecurrentMotion(nn.Module):
    """The ablation of Tab. 2, and MoCoGAN's motion: states of an LSTM, linear between tokens.

    Tokens can only be made one after the other from time 0.
    """

    reach = 0

    def __init__(self, config: MotionConfig, classes: int = 0):
        super().__init__()
        self.config, self.classes = config, classes
        self.lstm = nn.LSTM(config.noise + classes, config.width, batch_first=True)

    def tokens(
        self, noise: Tensor, label: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Noise (B, n, noise) -> tokens u (B, n, width) and the state after them, to go on from."""
        with torch.autocast(noise.device.type, enabled=False):
            x = with_label(noise, label, self.classes)
            return self.lstm(x.to(next(self.lstm.parameters()).dtype), state)

    def between(self, u: Tensor, first: Tensor, times: Tensor) -> Tensor:
        """Codes (B, F, width) at `times` (B, F) from tokens u (B, n, width), the first of number `first` (B,)."""
        left, share = around(times, self.config.spacing)
        index, share = left - first.view(-1, 1), share.unsqueeze(-1).to(u.dtype)
        return torch.lerp(pick(u, index), pick(u, index + 1), share)

    def forward(self, noise: Tensor, label: Tensor, first: Tensor, times: Tensor) -> Tensor:
        """As of `AcyclicMotion`; `first` must be 0."""
        return self.between(self.tokens(noise, label)[0], first, times).to(noise.dtype)


def with_label(noise: Tensor, label: Tensor, classes: int) -> Tensor:
    """Noise (B, n, noise), each token followed by the one-hot label (B, classes)."""
    if not classes:
        return noise
    return torch.cat([noise, label.to(noise.dtype).unsqueeze(1).expand(-1, noise.shape[1], -1)], -1)
