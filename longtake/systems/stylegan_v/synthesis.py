"""The synthesis network: StyleGAN2's, with the motion code beside its constant input (paper section 3.1, Fig. 5).

Shapes: N frames, L styles, W their width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longtake.config import check_range
from longtake.nn.precision import wide
from longtake.systems.stylegan_v.layers import ModulatedConv2d, Modulation, full_precision, upsample

COARSEST = 4
"""Least height or width of the constant input."""


@dataclass(frozen=True)
class SynthesisConfig:
    """Widths of the synthesis network."""

    base: int = 16_384
    """Channels times height of a resolution, where that gives fewer than `most` (32,768 from 512 pixels up)."""
    most: int = 512
    """Most channels."""
    clamp: float | None = None
    """Largest activation; 256 in the released models of mixed precision."""

    def __post_init__(self):
        check_range(self, "base most", 1)


def resolutions(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) from the coarsest grid, no side below 4, to `size`, doubling."""
    grids = [tuple(size)]
    while all(side % 2 == 0 and side // 2 >= COARSEST for side in grids[0]):
        grids.insert(0, (grids[0][0] // 2, grids[0][1] // 2))
    return grids  # type: ignore[return-value]


def channels(base: int, most: int, grid: tuple[int, int]) -> int:
    """Channels at a resolution."""
    return max(1, min(base // grid[0], most))


class Block(nn.Module):
    """One resolution: two convolutions (the coarsest has one) and what they add to the picture."""

    def __init__(self, in_channels: int, out_channels: int, style: int, first: bool, clamp: float | None):
        super().__init__()
        up = None if first else ModulatedConv2d(in_channels, out_channels, style, up=True, clamp=clamp)
        self.conv0 = up
        self.conv1 = ModulatedConv2d(in_channels if first else out_channels, out_channels, style, clamp=clamp)
        self.rgb = ModulatedConv2d(out_channels, 3, style, kernel=1, rgb=True, clamp=clamp)

    def layers(self) -> list[ModulatedConv2d]:
        """In the order of use."""
        return [layer for layer in (self.conv0, self.conv1, self.rgb) if layer is not None]


class Synthesis(nn.Module):
    """Motion codes (N, code) and the modulations of their styles to frames (N, 3, H, W), about [-1, 1].

    A block's picture takes the style of the convolution that comes after it, as in the official code: L is the
    number of convolutions and one. There are no noise inputs: they would flicker.

    The styles are given as modulations, because all frames of a video share them: `modulate` keeps them apart
    from the weights (training, where videos share a batch), `fold` puts one video's into the weights, once for all.
    """

    def __init__(self, config: SynthesisConfig, size: tuple[int, int], style: int, code: int):
        super().__init__()
        grids = resolutions(size)
        widths = [channels(config.base, config.most, grid) for grid in grids]
        self.constant = nn.Parameter(torch.randn(widths[0], *grids[0]))
        self.blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            into = widths[i - 1] if i else widths[0] + code
            self.blocks.append(Block(into, width, style, i == 0, config.clamp))

    @property
    def styles(self) -> int:
        """How many styles a video has (L)."""
        return 2 * len(self.blocks)

    def _layers(self) -> list[tuple[ModulatedConv2d, int]]:
        """Every layer with the number of its style."""
        found: list[tuple[ModulatedConv2d, int]] = []
        number = 0
        for block in self.blocks:
            assert isinstance(block, Block)
            convolutions = block.layers()[:-1]
            found += [(layer, number + i) for i, layer in enumerate(convolutions)]
            number += len(convolutions)
            found.append((block.rgb, number))
        return found

    def modulate(self, ws: Tensor) -> list[Modulation]:
        """Styles (N, L, W), one set a frame."""
        return [layer.modulate(ws[:, i]) for layer, i in self._layers()]

    def fold(self, ws: Tensor, dtype: torch.dtype = torch.float32) -> list[Modulation]:
        """Styles (1, L, W) of one video; frames are then computed in `dtype`."""
        return [layer.fold(ws[:, i], dtype) for layer, i in self._layers()]

    def forward(self, code: Tensor, modulations: list[Modulation]) -> Tensor:
        """`code` (N, code), N frames; returns their pictures in at least float32."""
        how = iter(modulations)
        dtype = code.dtype if modulations[0].before is not None else modulations[0].weight.dtype
        x = self.constant.to(dtype).expand(len(code), -1, -1, -1)
        tiled = code.to(dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x, picture = torch.cat([x, tiled], 1), None
        for block in self.blocks:
            assert isinstance(block, Block)
            *convolutions, rgb = block.layers()
            for layer in convolutions:
                x = layer(x, next(how))
            own = wide(rgb(x, next(how)))
            picture = own if picture is None else self._finer(picture) + own
        assert picture is not None
        return picture

    @full_precision
    def _finer(self, picture: Tensor) -> Tensor:
        """Twice the resolution. Rounded anew at each of them, the sum would lose what coarse blocks have added."""
        return upsample(picture)
