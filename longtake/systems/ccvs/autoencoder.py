"""The context-aware autoencoder (paper section 3.2): frames to codes, and codes with context back to frames.

Shapes: B frames, H W their size, D the latent's width, h w its size; K levels, H = h * 2^(K - 1).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from longtake.config import check_range
from longtake.nn.quantize import EMACodebook, Quantised, RestartBy, unquantised
from longtake.systems.ccvs.flow import FlowFusion
from longtake.systems.ccvs.layers import ConvLayer, ResBlock
from longtake.systems.ccvs.quantiser import GradientCodebook

Features = list[Tensor]
"""What a context frame gives: its encoder's features (B, f, H, W), finest level first."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of encoder, codebook and decoder; the defaults are those of BAIR at 256 pixels."""

    width: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    """Channels at each level, in multiples of `width`, finest first; each after the first halves the frame."""
    latent: int = 512
    """Width of a latent vector."""
    quantiser: Literal["gradient", "average", "none"] = "gradient"
    """How the codebook learns: by gradients (as published), by moving averages with restarts (small models keep
    more codes), or "none": no codebook, so the transformer regresses latent vectors (paper Table 5, last row)."""
    codes: int = 1024
    """Entries of the codebook."""
    restart: float = 0.02
    """Moving count below which an "average" code is replaced: far below one use an update, or rare things lose
    theirs."""
    restart_by: RestartBy = "error"
    """By what its replacement is drawn from the batch: its squared error, so that rare things get codes, or
    "random", evenly."""
    official_beta: bool = False
    """Official quirk: the weight 0.25 of equation 3 is on the codebook's term, not on the commitment term."""
    context: int = 15
    """Most context frames of a decoded frame; 0: a plain autoencoder without flow module (paper Table 1, row 4)."""
    shared: float = 0.75
    """Share of the channels through which context flows; the rest see latents alone."""
    flow_widths: tuple[int, int, int] = (128, 64, 32)
    """Channels of the flow module's layers."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of pixels in [0, 1] that the networks see as 0 (ImageNet's for the released Kinetics model)."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Spread of pixels in [0, 1] that the networks see as 1."""

    def __post_init__(self):
        if not 0 < self.shared <= 1:
            raise ValueError(f"shared is {self.shared} but must be above 0 and at most 1")
        check_range(self, "width multipliers latent flow_widths", 1)
        check_range(self, "context", 0)
        if int(self.shared * min(self.multipliers) * self.width) < 1 and self.context:
            raise ValueError(f"shared is {self.shared}, which leaves a level no channel for context; raise it")
        if self.quantiser != "none" and self.codes < 2:
            raise ValueError(f"a codebook of {self.codes} codes says nothing; give 2 or more")

    @property
    def levels(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.width * m for m in self.multipliers]

    @property
    def compression(self) -> int:
        """Pixels a latent vector stands for, along height and width each."""
        return 2 ** (len(self.multipliers) - 1)


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, D, h, w) and the features of every level."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        levels = config.levels
        self.shared = [int(config.shared * c) for c in levels]
        self.stem = ConvLayer(3, levels[0], 1)
        self.blocks = nn.ModuleList(ResBlock(a, b, "down") for a, b in itertools.pairwise(levels))
        self.project = ConvLayer(levels[-1], config.latent, 1)  # with activation, as in the released code

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        x = self.stem(x)
        features = [x[:, : self.shared[0]]]
        for block, f in zip(self.blocks, self.shared[1:], strict=True):
            x = block(x)
            features.append(x[:, :f])
        return self.project(x), features


class Decoded(NamedTuple):
    """What the decoder returns."""

    frames: Tensor
    """(B, 3, H, W), about [-1, 1] but not bounded."""
    flows: list[Tensor]
    """Of each level, coarsest first: (B * k, 2, h, w) in pixels of the coarsest level; empty without context."""
    masks: list[Tensor]
    """Logits (B * k, 1, h, w) likewise."""


class Decoder(nn.Module):
    """(B, D, h, w) and k context frames -> (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        levels = config.levels[::-1]
        self.shared = [int(config.shared * c) for c in levels]
        self.project = ConvLayer(config.latent, levels[0], 1)
        self.blocks = nn.ModuleList(ResBlock(a, b, "up") for a, b in itertools.pairwise(levels))
        self.head = ConvLayer(levels[-1], 3, 1, activation=None)
        fusions = (
            [FlowFusion(i, f, config.flow_widths) for i, f in enumerate(self.shared)] if config.context else []
        )
        self.fusions = nn.ModuleList(fusions)

    def forward(self, z: Tensor, contexts: list[Features]) -> Decoded:
        """`contexts`: any number of them, each of B frames; none: every level is made of the latents alone."""
        flows, masks = [], []
        flow = mask = None
        x = self.project(z)
        for level, f in enumerate(self.shared):
            if level:
                x = self.blocks[level - 1](x)
            if contexts and len(self.fusions):
                own = torch.stack([features[-1 - level] for features in contexts], 1)
                mixed, flow, mask = self.fusions[level](x[:, :f], own, flow, mask)
                x = torch.cat([mixed, x[:, f:]], 1)
                flows.append(flow)
                masks.append(mask)
        return Decoded(self.head(x), flows, masks)


class Autoencoder(nn.Module):
    """Encoder, codebook and decoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.quantiser == "gradient":
            self.codebook: nn.Module | None = GradientCodebook(config.codes, config.latent, config.official_beta)
        elif config.quantiser == "average":
            self.codebook = EMACodebook(
                config.codes, config.latent, restart=config.restart, restart_by=config.restart_by
            )
        else:
            self.codebook = None
        # From [-1, 1] to what the networks see.
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1) * 2, persistent=False)

    def encode(self, frames: Tensor) -> tuple[Tensor, Features]:
        """`frames` (B, 3, H, W) in [-1, 1] -> latents before quantisation (B, D, h, w), context features."""
        return self.encoder(((frames - self.mean) / self.std).to(self.encoder.stem.conv.weight.dtype))

    def quantise(self, z: Tensor) -> Quantised:
        """Latents (B, D, h, w) -> what the decoder sees, codes and loss; as they are without a codebook."""
        return unquantised(z) if self.codebook is None else self.codebook(z)

    def tokens(self, z: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> codes (B, h * w), or vectors (B, h * w, D) without a codebook."""
        if self.codebook is None:
            return z.flatten(2).transpose(1, 2)
        return self.codebook.nearest(z).flatten(1)  # type: ignore[operator]

    def latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The reverse of `tokens`: (B, h * w) or (B, h * w, D) -> (B, D, h, w)."""
        if self.codebook is None:
            return tokens.transpose(1, 2).unflatten(2, grid)
        return self.codebook.lookup(tokens.unflatten(1, grid))  # type: ignore[operator]

    def decode(self, z: Tensor, contexts: list[Features]) -> Decoded:
        """Latents (B, D, h, w) and context features -> frames (B, 3, H, W), about [-1, 1] but not clamped."""
        decoded = self.decoder(z, contexts)
        return decoded._replace(frames=decoded.frames * self.std + self.mean)


def stacked(features: Features, frames: int) -> list[Features]:
    """Features of B * T frames (clip by clip) -> those of each of the T frames."""
    split = [level.unflatten(0, (-1, frames)) for level in features]
    return [[level[:, t] for level in split] for t in range(frames)]


def detached(features: Features) -> Features:
    """The same, through which no gradient flows."""
    return [level.detach() for level in features]
