"""The discriminators of frames and of clips (thesis section 3.4.2; layer plan of G3AN's released code).

Every convolution is spectrally normalised; none is followed by a norm, all but the last by a leaky ReLU
of slope 0.2.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from longtake.systems.recall.generator import first_pixels

TIME_LEVELS = 4
"""Levels of the clip discriminator that shorten time, by 3 frames each: 16, 13, 10, 7, 4."""


def _unit(layer: nn.Conv2d | nn.Conv3d) -> list[nn.Module]:
    nn.init.normal_(layer.weight, std=0.02)
    return [spectral_norm(layer), nn.LeakyReLU(0.2, inplace=True)]


class ImageDiscriminator(nn.Module):
    """Frames (B, 3, H, W) in [-1, 1] -> logits (B,), higher is more real.

    A level halves the frame, one for each doubling of the generator: 4 at 64 pixels, 5 at 128.
    """

    def __init__(self, width: int, blocks: int, size: tuple[int, int]):
        super().__init__()
        widths = [3, *(width << min(i, 3) for i in range(blocks - 1))]
        units: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            units += _unit(nn.Conv2d(inputs, outputs, 4, 2, 1))
        units += _unit(nn.Conv2d(widths[-1], 1, first_pixels(blocks, size)))[:1]
        self.layers = nn.Sequential(*units)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames).flatten()


class VideoDiscriminator(nn.Module):
    """Clips (B, 3, 16, H, W) in [-1, 1] -> logits (B,), higher is more real.

    Four levels of a convolution over space and one over time; the fifth, at 128 pixels, is over space alone, since
    time is used up (its widths fit the published number of parameters). Frames that need fewer than four halvings
    keep their size in the levels beyond.
    """

    def __init__(self, width: int, blocks: int, size: tuple[int, int]):
        super().__init__()
        halvings = blocks - 1
        widths = [3, *(width << i for i in range(max(TIME_LEVELS, halvings)))]
        units: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            halving = ((1, 4, 4), (1, 2, 2), (0, 1, 1)) if i < halvings else ((1, 3, 3), 1, (0, 1, 1))
            units += _unit(nn.Conv3d(inputs, outputs, *halving))
            if i < TIME_LEVELS:
                units += _unit(nn.Conv3d(outputs, outputs, (4, 1, 1)))
        units += _unit(nn.Conv3d(widths[-1], widths[-1], (1, *first_pixels(blocks, size))))
        units += _unit(nn.Conv3d(widths[-1], 1, (4, 1, 1)))[:1]
        self.layers = nn.Sequential(*units)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips).flatten()
