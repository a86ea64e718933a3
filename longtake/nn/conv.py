"""3-D convolutions that keep "same" sizes under any padding, chosen for time and space apart.

Shapes: B batch, C channels, T time, H height, W width; video-like tensors are (B, C, T, H, W).

Along every axis a kernel k with stride s is padded by k - s in all, of which the front gets the larger half
(TATS, released code; the paper's section 2.2 compares the modes). So a convolution divides the length by s and a
transposed one multiplies it by s, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PaddingMode = Literal["replicate", "zeros", "reflect", "circular"]


@dataclass(frozen=True)
class Padding:
    """What lies beyond the borders, for time and space apart."""

    time: PaddingMode | Literal["none"] = "replicate"
    """Padding in time; "none" pads nothing, so the output is shorter and every value comes from real frames."""
    space: PaddingMode = "replicate"
    """Padding in height and width."""


def padding_amounts(kernel: int, stride: int) -> tuple[int, int]:
    """(front, back) padding of one axis: kernel - stride in all, the front gets the larger half."""
    total = kernel - stride
    return (total + 1) // 2, total // 2


def _source_index(size: int, front: int, back: int, mode: str, device: torch.device) -> Tensor:
    """For every padded position the position it copies; any padding, also one longer than the axis."""
    index = torch.arange(-front, size + back, device=device)
    if mode == "replicate":
        return index.clamp(0, size - 1)
    if mode == "circular":
        return index % size
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)


def pad3d(x: Tensor, amounts: list[tuple[int, int]], modes: tuple[str, str, str]) -> Tensor:
    """Pads time, height and width of `x` (B, C, T, H, W) by (front, back); one mode an axis, "none" skips it."""
    for mode in dict.fromkeys(modes):
        if mode == "none":
            continue
        flat: list[int] = []
        for axis in (2, 1, 0):  # F.pad counts from the last axis
            front, back = amounts[axis] if modes[axis] == mode else (0, 0)
            size = x.shape[2 + axis]
            if mode in ("reflect", "circular") and max(front, back) > size - (mode == "reflect"):
                # More padding than F.pad can take from so short an axis.
                x = x.index_select(2 + axis, _source_index(size, front, back, mode, x.device))
                front = back = 0
            flat += [front, back]
        if any(flat):
            x = F.pad(x, flat, mode="constant" if mode == "zeros" else mode)
    return x


class PaddedConv3d(nn.Conv3d):
    """A 3-D convolution of a (B, C, T, H, W) tensor that divides each length by the stride.

    With `Padding(time="none")` the time axis gets shorter by kernel - stride before the division.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: Padding = Padding(),
    ):
        super().__init__(in_channels, out_channels, kernel, stride)
        self.modes = (padding.time, padding.space, padding.space)
        self.amounts = [padding_amounts(kernel, s) for s in stride]
        # Symmetric zero padding costs nothing inside the convolution; all else is written out before it.
        fused = [
            mode == "zeros" and front == back for mode, (front, back) in zip(self.modes, self.amounts, strict=True)
        ]
        self.inner = tuple(a[0] if f else 0 for f, a in zip(fused, self.amounts, strict=True))
        self.outer = [(0, 0) if f else a for f, a in zip(fused, self.amounts, strict=True)]

    def forward(self, input: Tensor) -> Tensor:
        x = pad3d(input, self.outer, self.modes)
        return F.conv3d(x, self.weight, self.bias, self.stride, self.inner)


class PaddedConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3-D convolution of a (B, C, T, H, W) tensor that multiplies each length by the stride.

    The padding is laid around the input, and what the kernel writes beyond it is cut off.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: Padding = Padding(),
    ):
        super().__init__(in_channels, out_channels, kernel, stride)
        self.modes = (padding.time, padding.space, padding.space)
        self.amounts = [padding_amounts(kernel, s) for s in stride]
        fused = [
            mode == "zeros" and front == back and kernel - 1 >= front * s
            for mode, (front, back), s in zip(self.modes, self.amounts, stride, strict=True)
        ]
        # A zero around the input adds nothing to the output: only fewer positions are cut off.
        self.inner = tuple(
            kernel - 1 - front * s if f else kernel - 1
            for f, (front, _), s in zip(fused, self.amounts, stride, strict=True)
        )
        self.outer = [(0, 0) if f else a for f, a in zip(fused, self.amounts, strict=True)]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x = pad3d(input, self.outer, self.modes)
        return F.conv_transpose3d(x, self.weight, self.bias, self.stride, self.inner)
