"""How a frame being decoded takes from context frames: flow, mask, warp (paper section 3.2, appendices A and D).

Built after LiteFlowNet: at every resolution the flow of the level below is doubled in size and refined, first by
matching features within a small window, then by looking at decoded and warped features side by side.

Shapes: B frames being decoded; k contexts; f channels that take part; h, w of a level. Flow (x, y) is in pixels of
the coarsest level at every level, so it needs no scaling from one level to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.nn.precision import wide
from longtake.systems.ccvs.layers import ConvLayer, leaky

RADIUS = 3
CONFIDENCE_EPS = 1e-6


def backwarp(x: Tensor, flow: Tensor, outside: float = 0.0) -> Tensor:
    """`x` (B, C, h, w) sampled at p + flow(p), bilinearly; `flow` (B, 2, h, w), x then y, in pixels of `x`.

    As the released code does, the displacement is scaled by the distance of the outer pixels' centres and the grid
    by that of the borders, so d pixels move d * w / (w - 1): released weights count on it.

    Places are computed in float32 at least: bfloat16 knows them to a tenth of a pixel only.
    """
    h, w = x.shape[-2:]
    flow, kind = wide(flow), x.dtype
    x = wide(x)
    horizontal = torch.linspace(-1 + 1 / w, 1 - 1 / w, w, dtype=flow.dtype, device=flow.device)
    vertical = torch.linspace(-1 + 1 / h, 1 - 1 / h, h, dtype=flow.dtype, device=flow.device)
    grid = torch.stack(
        [horizontal + flow[:, 0] / max((w - 1) / 2, 0.5), vertical[:, None] + flow[:, 1] / max((h - 1) / 2, 0.5)],
        -1,
    )
    return (F.grid_sample(x - outside, grid.to(x.dtype), align_corners=False) + outside).to(kind)


def correlation(a: Tensor, b: Tensor, stride: int = 1) -> Tensor:
    """Mean product of the features `a` at a place and `b` around it: (B, C, h, w) each -> (B, 49, h', w').

    Channel (dy + 3) * 7 + dx + 3 compares with the place `stride` * (dx, dy) away, dx and dy in -3 .. 3; beyond the
    borders there are zeros. Only every `stride`-th row and column is computed.
    """
    h, w = a.shape[-2:]
    reach = RADIUS * stride
    padded = F.pad(b, (reach, reach, reach, reach))
    a = a[..., ::stride, ::stride]
    costs = []
    for dy in range(2 * RADIUS + 1):
        rows = padded[:, :, dy * stride : dy * stride + h : stride]
        for dx in range(2 * RADIUS + 1):
            costs.append((a * rows[..., dx * stride : dx * stride + w : stride]).mean(1))
    return torch.stack(costs, 1)


def double(channels: int) -> nn.ConvTranspose2d:
    """Twice the height and width, each channel by itself; learned, bilinear to begin with."""
    layer = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False, groups=channels)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.copy_((line[:, None] * line).expand_as(layer.weight))
    return layer


class Refinement(nn.Module):
    """Three 3x3 layers and two linear heads: changes of flow (B, 2, h, w) and of the mask's logit (B, 1, h, w)."""

    def __init__(self, inputs: int, widths: tuple[int, int, int], kernel: int):
        super().__init__()
        sizes = (inputs, *widths)
        self.convs = nn.Sequential(*(ConvLayer(a, b, 3) for a, b in zip(sizes, widths, strict=False)))
        self.flow = ConvLayer(widths[-1], 2, kernel, activation=None)
        self.mask = ConvLayer(widths[-1], 1, kernel, activation=None)
        # So flow begins at 0, which is right for whatever stands still, and masks at one half. (The released code
        # begins with random ones.)
        nn.init.zeros_(self.flow.conv.weight)
        nn.init.zeros_(self.mask.conv.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convs(x)
        return wide(self.flow(features)), wide(self.mask(features))


class Fused(NamedTuple):
    """What a level makes of its contexts."""

    features: Tensor
    """(B, f, h, w): decoded features mixed with warped context (paper equation 1)."""
    flow: Tensor
    """(B * k, 2, h, w), contexts of a frame behind one another."""
    mask: Tensor
    """Logit (B * k, 1, h, w); its sigmoid is the share of the decoded features."""


class FlowFusion(nn.Module):
    """The flow module at one level, 0 the coarsest, of `channels` features."""

    def __init__(self, level: int, channels: int, widths: tuple[int, int, int]):
        super().__init__()
        self.scale, self.stride = 2**level, 1 if level <= 2 else 2
        kernel = 2 ** (level // 2 + 1) + 1
        self.project = ConvLayer(channels, max(16, channels // 4), 1) if channels > 16 else None
        self.double_flow = double(2) if level else None
        self.double_mask = double(1) if level else None
        self.double_costs = double((2 * RADIUS + 1) ** 2) if self.stride > 1 else None
        self.matching = Refinement((2 * RADIUS + 1) ** 2, widths, kernel)
        self.subpixel = Refinement(2 * channels + 3, widths, kernel)

    def forward(self, x: Tensor, contexts: Tensor, flow: Tensor | None, mask: Tensor | None) -> Fused:
        """Refine flow and mask, and mix in the contexts.

        Args:
            x: (B, f, h, w) decoded features.
            contexts: (B, k, f, h, w).
            flow, mask: of the level below, (B * k, 2 or 1, h / 2, w / 2); None at the coarsest.
        """
        # Flow and mask are of float32 also where the weights are half as wide.
        k, dtype = contexts.shape[1], self.matching.flow.conv.weight.dtype
        e, d = contexts.flatten(0, 1), x.repeat_interleave(k, 0)
        first: tuple[Tensor, Tensor]
        if flow is None or mask is None or self.double_flow is None or self.double_mask is None:
            first = self.matching(self._costs(d, e))
        else:
            begin = wide(self.double_flow(flow.to(dtype))), wide(self.double_mask(mask.to(dtype)))
            first = _add(*begin, self.matching(self._costs(d, backwarp(e, begin[0] * self.scale))))
        warped = backwarp(e, first[0] * self.scale)
        final = _add(*first, self.subpixel(torch.cat([d, warped, *first], 1).to(dtype)))
        warped = backwarp(e, final[0] * self.scale)
        return Fused(_mix(x, warped, final[1], k).to(dtype), *final)

    def _costs(self, d: Tensor, e: Tensor) -> Tensor:
        if self.project is not None:
            d, e = self.project(d), self.project(e)
        costs = leaky(correlation(d, e, self.stride))
        return costs if self.double_costs is None else self.double_costs(costs)


def _add(flow: Tensor, mask: Tensor, change: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return flow + change[0], mask + change[1]


def _mix(x: Tensor, warped: Tensor, mask: Tensor, k: int) -> Tensor:
    """Equation 1; several contexts are averaged first, each by the confidence of its mask (appendix D)."""
    if k > 1:
        mask, warped = mask.unflatten(0, (-1, k)), warped.unflatten(0, (-1, k))
        weight = 1 - mask.sigmoid() + CONFIDENCE_EPS
        total = weight.sum(1)
        warped, mask = (warped * weight).sum(1) / total, (mask * weight).sum(1) / total
    share = mask.sigmoid()
    return share * x + (1 - share) * warped
