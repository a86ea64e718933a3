"""Discriminators of frames and of short clips: those of StyleGAN2, the second with 3-D convolutions.

Source: paper section 3.2 (the temporal one is "a direct extension" of the other), released code.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from longtake.nn.precision import wide
from longtake.systems.ccvs.layers import ConvLayer, EqualLinear, ResBlock, gained

SMALLEST = 4
"""Blocks halve the frame until its shorter side is no longer than this."""
GROUP = 4
"""Most examples whose spread is shown to the last layers."""


class Discriminator(nn.Module):
    """Frames (B, 3, H, W) or, with `frames`, clips (B, 3, T, H, W) -> scores (B, 1), higher is more real.

    A clip loses two frames in each block until it has two or fewer.

    Args:
        size: (H, W).
        width, multipliers: channels of the levels, finest first; the last repeats.
        frames: T of a clip, None for single frames.
    """

    def __init__(self, size: tuple[int, int], width: int, multipliers: tuple[int, ...], frames: int | None = None):
        super().__init__()
        blocks = max(0, math.ceil(math.log2(min(size) / SMALLEST)))
        levels = [width * multipliers[min(i, len(multipliers) - 1)] for i in range(blocks + 1)]
        time = frames is not None
        self.stem = ConvLayer(3, levels[0], 1, activation=gained, time=1 if time else None)
        self.blocks = nn.ModuleList()
        left = frames or 1
        for a, b in itertools.pairwise(levels):
            shorten = time and left > 2
            self.blocks.append(ResBlock(a, b, "down", gained, time, shorten))
            left -= 2 * shorten
        self.final = ConvLayer(levels[-1] + 1, levels[-1], 3, activation=gained, time=3 if time else None)
        places = left * (size[0] >> blocks) * (size[1] >> blocks)
        self.hidden = EqualLinear(levels[-1] * places, levels[-1])
        self.score = EqualLinear(levels[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.final(torch.cat([x, batch_spread(x)], 1))
        return self.score(gained(self.hidden(x.flatten(1))))


def batch_spread(x: Tensor) -> Tensor:
    """The mean spread of features over a group of examples, as one more channel: (B, C, ...) -> (B, 1, ...).

    Groups are of four where the batch divides by four, else of the largest number below that divides it. Example i
    is in a group with those B / group apart.
    """
    batch = len(x)
    group = next(n for n in range(min(GROUP, batch), 0, -1) if batch % n == 0)
    y = wide(x).view(group, batch // group, -1)
    spread = (y.var(0, unbiased=False) + 1e-8).sqrt().mean(1)  # (B / group,)
    return spread.repeat(group).to(x.dtype).view(batch, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])
