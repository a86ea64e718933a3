"""Layers of StyleGAN2 (Karras et al., "Analyzing and improving the image quality of StyleGAN", CVPR 2020).

Learning rates are equalised: weights are kept at unit scale, divided by the layer's learning-rate factor, and
brought to the scale of their fan-in when they are used. All layers compute in the type of their input.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.precision import wide

SLOPE = 0.2
TAPS = (1, 3, 3, 1)
"""The low-pass filter around every change of resolution."""

R = TypeVar("R")


def full_precision(forward: Callable[..., R]) -> Callable[..., R]:
    """A method that is spared from mixed precision: it is small, and its numbers are large or exact."""

    @wraps(forward)
    def run(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> R:
        with torch.autocast(x.device.type, enabled=False):
            return forward(self, wide(x), *args, **kwargs)

    return run


def unit_moment(x: Tensor) -> Tensor:
    """`x` (..., C) over the root of its mean square."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-8).rsqrt()


def activate(x: Tensor, bias: Tensor | None, gain: float = math.sqrt(2), clamp: float | None = None) -> Tensor:
    """Bias and leaky ReLU, times `gain`, kept within +-`clamp` (in proportion to the gain)."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    x = F.leaky_relu(x, SLOPE) * gain
    if clamp is not None:
        limit = clamp * gain / math.sqrt(2)
        x = x.clamp(-limit, limit)
    return x


def low_pass(x: Tensor) -> Tensor:
    """The 2-D filter of `TAPS`, of unit sum: (4, 4) like `x`."""
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    return torch.outer(taps, taps) / taps.sum() ** 2


def smooth(x: Tensor, padding: int, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
    """`x` (N, C, H, W), zero-padded, through the low-pass filter, plus a bias (C,)."""
    channels = x.shape[1]
    kernel = (low_pass(x) * gain).expand(channels, 1, 4, 4)
    return F.conv2d(x, kernel, bias, padding=padding, groups=channels)


def upsample(x: Tensor) -> Tensor:
    """Twice the resolution: (N, C, H, W) -> (N, C, 2H, 2W)."""
    channels = x.shape[1]
    kernel = (low_pass(x) * 4).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


class EqualLinear(nn.Module):
    """A linear layer with an equalised learning rate, `rate` times that of the rest; `x` (..., C)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: float | None = 0.0,
        rate: float = 1.0,
        active: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias / rate)) if bias is not None else None
        self.scale, self.rate, self.active = rate / math.sqrt(in_features), rate, active

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype) * self.rate
        x = F.linear(x, self.weight.to(x.dtype) * self.scale, bias)
        return F.leaky_relu(x, SLOPE) * math.sqrt(2) if self.active else x


class EqualConv1d(nn.Module):
    """A 1-D convolution without padding: (N, C, T) -> (N, C', T - kernel + 1), with a learning-rate factor."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel) / rate)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale, self.rate = rate / math.sqrt(in_channels * kernel), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.to(x.dtype) * self.scale, self.bias.to(x.dtype) * self.rate)


class EqualConv2d(nn.Module):
    """A 2-D convolution with "same" padding, optionally after halving the resolution, then bias and leaky ReLU.

    A layer without activation has no bias either (the skips of residual blocks).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        down: bool = False,
        active: bool = True,
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if active else None
        self.scale, self.kernel, self.down, self.clamp = 1 / math.sqrt(in_channels * kernel**2), kernel, down, clamp

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` multiplies the output."""
        weight = self.weight.to(x.dtype) * self.scale
        if not self.down:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        elif self.kernel == 1:
            # Not a stride of the filter: PyTorch's gradient of that takes ten times as long on CPUs.
            x = F.conv2d(smooth(x, padding=1)[:, :, ::2, ::2], weight)
        else:
            x = F.conv2d(smooth(x, padding=2), weight, stride=2)
        if self.bias is None:
            return x * gain
        return activate(x, self.bias, gain * math.sqrt(2), self.clamp)


class Modulation(NamedTuple):
    """What a style makes of a convolution.

    Either one style an image, kept apart from the weights: `before` and `after` scale their input and output. Or
    one style for all images, folded into `weight` together with the gain of the activation, as it is into `bias`.
    """

    weight: Tensor
    """(C', C, k, k)"""
    before: Tensor | None = None
    """(N, C, 1, 1)"""
    after: Tensor | None = None
    """(N, C', 1, 1)"""
    bias: Tensor | None = None
    """(C',)"""


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels are scaled by a style (StyleGAN2 section 2.2).

    Demodulated layers bring every output channel to unit variance and end with bias and leaky ReLU; `rgb` layers
    (1 x 1, to colours) do neither.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: int,
        kernel: int = 3,
        *,
        up: bool = False,
        rgb: bool = False,
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = EqualLinear(style, in_channels, bias=1.0)
        self.up, self.rgb, self.kernel, self.clamp = up, rgb, kernel, clamp

    def modulate(self, w: Tensor) -> Modulation:
        """One style an image: `w` (N, W)."""
        style, after = self._scales(w)
        if after is None:
            return Modulation(self.weight, style[:, :, None, None])
        # Scaled down before and up after the convolution, whose sums could leave float16's range.
        most, root = style.abs().amax(1, keepdim=True).clamp_min(1e-8), math.sqrt(self.weight[0].numel())
        before, after = style / most, after * (most * root)
        return Modulation(self.weight / root, before[:, :, None, None], after[:, :, None, None])

    def fold(self, w: Tensor, dtype: torch.dtype) -> Modulation:
        """One style for all images, in the weights: `w` (1, W)."""
        style, after = self._scales(w)
        weight, gain = self.weight.to(style.dtype) * style[0, None, :, None, None], 1.0
        if after is not None:
            gain = math.sqrt(2)  # a leaky ReLU passes positive factors on
            weight *= (gain * after)[0, :, None, None, None]
        bias = (self.bias.to(style.dtype) * gain).to(dtype)
        return Modulation(weight.to(dtype, memory_format=torch.channels_last), bias=bias)

    @full_precision
    def _scales(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, C) of the input and, where there is demodulation, (N, C') of the output."""
        style = self.affine(w)
        if self.rgb:
            return style / math.sqrt(style.shape[1]), None
        power = self.weight.to(style.dtype).square().sum((2, 3))
        return style, (F.linear(style.square(), power) + 1e-8).rsqrt()

    def forward(self, x: Tensor, how: Modulation) -> Tensor:
        """`x` (N, C, H, W)."""
        if how.bias is not None:
            return self._folded(x, how.weight, how.bias)
        if how.before is not None:
            x = x * how.before.to(x.dtype)
        weight = how.weight.to(x.dtype)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        else:
            x = F.conv2d(x, weight, padding=self.kernel // 2)
        if how.after is not None:
            x = x * how.after.to(x.dtype)
        if self.up:
            x = smooth(x, padding=1, gain=4)
        if self.rgb:
            x = x + self.bias.to(x.dtype).view(1, -1, 1, 1)
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        return activate(x, self.bias, clamp=self.clamp)

    def _folded(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The same where one style is in the weights: nothing is left to be done but in place."""
        if self.up:
            x = smooth(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4, bias=bias)
        else:
            x = F.conv2d(x, weight, bias, padding=self.kernel // 2)
        if not self.rgb:
            x = F.leaky_relu_(x, SLOPE)
        return x if self.clamp is None else x.clamp_(-self.clamp, self.clamp)
