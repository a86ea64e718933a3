"""Convolutions of CCVS: weights scaled at run time, resampling through a blur (after StyleGAN2, section B).

Shapes: B batch, C channels, T time, H height, W width; images (B, C, H, W), clips (B, C, T, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Resample = Literal["down", "up"]
TAPS = (1.0, 3.0, 3.0, 1.0)


def leaky(x: Tensor) -> Tensor:
    """Of encoder, decoder, flow, state and sound networks: slope 0.1, no gain."""
    return F.leaky_relu(x, 0.1)


def gained(x: Tensor) -> Tensor:
    """Of the discriminators: slope 0.2, times the square root of 2."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x: Tensor, front: int, back: int, gain: float = 1.0) -> Tensor:
    """Smooth height and width of (B, C, [T,] H, W) by [1, 3, 3, 1] / 8, zeros beyond the borders.

    Both axes are padded by `front` and `back` first and lose 3; the result is multiplied by `gain`.
    """
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device) / sum(TAPS)
    planes = x.flatten(1, -3)
    kernel = (gain * taps[:, None] * taps).expand(planes.shape[1], 1, 4, 4)
    planes = F.conv2d(F.pad(planes, (front, back, front, back)), kernel, groups=planes.shape[1])
    return planes.unflatten(1, x.shape[1:-2])


class EqualConv(nn.Module):
    """A convolution whose weights are kept at unit variance and scaled by 1 / sqrt(fan in) when used.

    `kernel` has an entry an axis: (k, k) for images, (t, k, k) for clips. `transpose` makes it a transposed one of
    the same weights (out, in, ...).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        padding: tuple[int, ...] | None = None,
        bias: bool = True,
        transpose: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * math.prod(kernel))
        self.stride = stride or (1,) * len(kernel)
        self.padding = padding or (0,) * len(kernel)
        self.transpose = transpose

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.transpose:
            return F.conv_transpose2d(x, weight.transpose(0, 1), self.bias, self.stride, self.padding)
        if weight.dim() == 4:
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)
        # Time is padded by hand: padded in time alone, strided convolutions in bfloat16 can return weight gradients
        # that are not numbers (PyTorch 2.13 on CPUs).
        time, *space = self.padding
        return F.conv3d(F.pad(x, (0, 0, 0, 0, time, time)), weight, self.bias, self.stride, (0, *space))


class EqualLinear(nn.Module):
    """A linear layer whose weights are kept at unit variance and scaled by 1 / sqrt(fan in) when used."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.weight.shape[1]), self.bias)


class ConvLayer(nn.Module):
    """A convolution, at the same size, half ("down") or double ("up"), and an activation.

    Args:
        inputs, outputs: channels.
        kernel: in height and width.
        resample: None keeps the size; odd lengths are halved downwards.
        activation: None for a linear layer.
        bias: whether there is one.
        time: kernel in time, for clips; their length stays unless `shorten`.
        shorten: leave time unpadded, so that a clip loses `time` - 1 frames.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        resample: Resample | None = None,
        activation: Activation | None = leaky,
        bias: bool = True,
        time: int | None = None,
        shorten: bool = False,
    ):
        super().__init__()
        self.resample, self.activation = resample, activation
        step, pad = (1, kernel // 2) if resample is None else (2, 0)
        self.front, self.back, self.gain = 0, 0, 1.0
        if resample == "down":
            total = 2 + kernel - 1
            self.front, self.back = (total + 1) // 2, total // 2
        elif resample == "up":
            total = 2 - (kernel - 1)
            self.front, self.back, self.gain = (total + 1) // 2 + 1, total // 2 + 1, 4.0
        shape, stride, padding = (kernel, kernel), (step, step), (pad, pad)
        if time is not None:
            shape, stride = (time, *shape), (1, *stride)
            padding = (0 if shorten else time // 2, *padding)
        self.conv = EqualConv(inputs, outputs, shape, stride, padding, bias, resample == "up")

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            x = blur(x, self.front, self.back)
        x = self.conv(x)
        if self.resample == "up":
            x = blur(x, self.front, self.back, self.gain)
        return x if self.activation is None else self.activation(x)


class ResBlock(nn.Module):
    """Two 3x3 layers, the second resampling, beside a resampled 1x1 skip; their sum over the square root of 2.

    With `time` the 3x3 layers are 3x3x3 and work on clips; with `shorten` too the clip loses two frames.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        resample: Resample,
        activation: Activation = leaky,
        time: bool = False,
        shorten: bool = False,
    ):
        super().__init__()
        deep = 3 if time else None
        narrow = (3 if shorten else 1) if time else None
        self.conv1 = ConvLayer(inputs, inputs, 3, None, activation, time=deep)
        self.conv2 = ConvLayer(inputs, outputs, 3, resample, activation, time=deep, shorten=shorten)
        self.skip = ConvLayer(inputs, outputs, 1, resample, None, bias=False, time=narrow, shorten=shorten)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)
