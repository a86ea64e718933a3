"""Adaptive augmentation of what the discriminators see (Karras et al., "Training generative adversarial networks
with limited data", NeurIPS 2020), the same for all frames of a video (StyleGAN-V, released code).

Every transformation is applied to a video with probability p, and p follows how sure the discriminator is of real
videos. Videos that no transformation moves are left alone, which gives the same as moving them by nothing: the
filters around the sampling reconstruct perfectly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.config import check_range
from longtake.nn.distributed import all_reduce_sum, processes
from longtake.nn.precision import wide

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Low-pass filter of the orthonormal symlet wavelet of 6 vanishing moments (Daubechies)."""
BORDER, SEEN = 12, 4
"""Mirrored pixels around a frame before it is resampled, and how many of them the filter may show as they are."""


@dataclass(frozen=True)
class AugmentConfig:
    """Which augmentations there are, and how their probability adapts."""

    target: float | None = 0.6
    """Mean sign of the logits of real videos that the probability steers to; None: it stays at `start`."""
    start: float = 0.0
    """Probability at the beginning."""
    videos: int = 500_000
    """Videos seen while the probability goes from 0 to 1 at most (the released code's default command: 100,000)."""
    every: int = 4
    """Updates between two corrections."""
    most: float = 1.0
    """Largest probability: near 1 turned and mirrored pictures are as likely as real ones and leak into what is
    made."""
    mirror: bool = True
    """Mirroring."""
    turns: bool = True
    """Quarter turns."""
    shifts: bool = True
    """Shifts by whole pixels."""
    geometry: bool = True
    """Scaling, rotation, stretching, shifts."""
    colour: bool = True
    """Brightness, contrast, inverted luma, hue, saturation."""

    def __post_init__(self):
        check_range(self, "videos every", 1)
        check_range(self, "start most", 0, 1)
        check_range(self, "target", -1, 1)


class Adaptation:
    """The probability and what it is corrected by: signs and count of all processes since the last correction."""

    def __init__(self, config: AugmentConfig):
        self.config, self.p = config, config.start
        self.signs, self.count = 0.0, 0.0
        self.seen = (0.0, 0.0)  # by this process in this update
        self.device = torch.device("cpu")

    @property
    def active(self) -> bool:
        """Whether anything can be augmented, now or later."""
        return self.config.target is not None or self.p > 0

    def see(self, logits: Tensor) -> None:
        """Logits of real videos."""
        self.device = logits.device  # where processes exchange figures
        self.seen = (self.seen[0] + float(logits.detach().sign().sum()), self.seen[1] + logits.numel())

    def correct(self, step: int, videos: int) -> None:
        """After update number `step` of `videos` videos a process; moves the probability when it is due."""
        if self.config.target is None:
            return
        # At every update: a checkpoint holds the first process's figures, from which all go on.
        signs, count = all_reduce_sum(torch.tensor(self.seen, dtype=torch.float32, device=self.device)).tolist()
        self.signs, self.count, self.seen = self.signs + signs, self.count + count, (0.0, 0.0)
        if (step + 1) % self.config.every:
            return
        direction = math.copysign(1, self.signs / self.count - self.config.target) if self.count else 0
        self.p += direction * videos * processes() * self.config.every / self.config.videos
        self.p = min(self.config.most, max(0.0, self.p))
        self.signs = self.count = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"p": self.p, "signs": self.signs, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.p, self.signs, self.count = state["p"], state["signs"], state["count"]


def augment(frames: Tensor, p: float, config: AugmentConfig) -> Tensor:
    """Frames (B, 3, F, H, W) in [-1, 1], augmented with probability `p`; random numbers from PyTorch's generator.

    Differentiable twice by the frames, as R1 needs it.
    """
    if p <= 0:
        return frames
    with torch.autocast(frames.device.type, enabled=False):
        x = wide(frames)
        where = geometry(len(x), x.shape[3:], p, config, x.device).to(x.dtype)
        moved = (where != torch.eye(3, device=x.device, dtype=x.dtype)).flatten(1).any(1).nonzero()[:, 0]
        if len(moved):
            images = x[moved].flatten(1, 2)
            x = x.index_copy(0, moved, resample(images, where[moved]).unflatten(1, x.shape[1:3]))
        if config.colour:
            matrix = colours(len(x), p, x.device).to(x.dtype)
            mixed = torch.einsum("bij,bjfhw->bifhw", matrix[:, :3, :3], x)
            x = mixed + matrix[:, :3, 3].view(-1, 3, 1, 1, 1)
    return x


def _with(p: float, values: Tensor, neutral: float) -> Tensor:
    """Values (B,) with probability p, else neutral."""
    return torch.where(torch.rand(len(values), device=values.device) < p, values, torch.full_like(values, neutral))


def _matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """(B, n, n) of numbers and tensors (B,)."""
    return torch.stack([torch.stack([like.new_zeros(len(like)) + v for v in row], -1) for row in rows], -2)


def _scale(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]], x)


def _rotate(angle: Tensor) -> Tensor:
    return _matrix([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0], [0.0, 0.0, 1.0]], angle)


def _shift(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]], x)


def geometry(
    batch: int, size: torch.Size | tuple[int, int], p: float, config: AugmentConfig, device: torch.device
) -> Tensor:
    """Where in the source a pixel comes from: (B, 3, 3) on (x, y, 1) in pixels from the middle of the frame."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, device=device) * (high - low) + low

    def normal() -> Tensor:
        return torch.randn(batch, device=device)

    height, width = size
    where = torch.eye(3, device=device).expand(batch, 3, 3)
    if config.mirror:
        mirror = _with(p, uniform(0, 2).floor(), 0)
        where = where @ _scale(1 - 2 * mirror, torch.ones_like(mirror))
    if config.turns:
        turn = _with(p, uniform(0, 4).floor(), 0)
        exact = torch.tensor([0.0, 1.0, 0.0, -1.0], device=device)
        sine, cosine = exact[turn.long()], exact[(turn.long() + 1) % 4]
        where = where @ _matrix([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], sine)
    if config.shifts:
        chosen = torch.rand(batch, device=device) < p
        right = (uniform(-0.125, 0.125) * width).round() * chosen
        below = (uniform(-0.125, 0.125) * height).round() * chosen
        where = where @ _shift(right, below)
    if config.geometry:
        turned = 1 - math.sqrt(1 - p)  # so that either rotation happens with probability p
        scale = _with(p, torch.exp2(-0.2 * normal()), 1)
        before = _with(turned, uniform(-math.pi, math.pi), 0)
        stretch = _with(p, torch.exp2(-0.2 * normal()), 1)
        after = _with(turned, uniform(-math.pi, math.pi), 0)
        chosen = torch.rand(batch, device=device) < p
        right, below = 0.125 * width * normal() * chosen, 0.125 * height * normal() * chosen
        where = where @ _scale(scale, scale) @ _rotate(before) @ _scale(stretch, 1 / stretch) @ _rotate(after)
        where = where @ _shift(right, below)
    return where


def colours(batch: int, p: float, device: torch.device) -> Tensor:
    """(B, 4, 4) on (red, green, blue, 1)."""

    def normal() -> Tensor:
        return torch.randn(batch, device=device)

    identity = torch.eye(4, device=device)
    grey = torch.tensor([1.0, 1.0, 1.0, 0.0], device=device) / math.sqrt(3)
    along = torch.outer(grey, grey)
    matrix = identity.expand(batch, 4, 4).clone()
    matrix[:, :3, 3] += _with(p, 0.2 * normal(), 0)[:, None]
    contrast = _with(p, torch.exp2(0.5 * normal()), 1)
    matrix = torch.cat([matrix[:, :3] * contrast.view(-1, 1, 1), matrix[:, 3:]], 1)
    invert = _with(p, (torch.rand(batch, device=device) * 2).floor(), 0)
    matrix = (identity - 2 * along * invert.view(-1, 1, 1)) @ matrix
    hue = _with(p, (torch.rand(batch, device=device) * 2 - 1) * math.pi, 0)
    matrix = _around_grey(hue) @ matrix
    saturation = _with(p, torch.exp2(normal()), 1).view(-1, 1, 1)
    keep = along + torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0], device=device))
    return (keep + (identity - keep) * saturation) @ matrix


def _around_grey(angle: Tensor) -> Tensor:
    """Rotation (B, 4, 4) around the grey axis (Rodrigues)."""
    third, c, s = 1 / 3, angle.cos(), angle.sin() / math.sqrt(3)
    a, b, d = third + c * (1 - third), third * (1 - c) - s, third * (1 - c) + s
    return _matrix([[a, b, d, 0.0], [d, a, b, 0.0], [b, d, a, 0.0], [0.0, 0.0, 0.0, 1.0]], angle)


def resample(images: Tensor, where: Tensor) -> Tensor:
    """Images (B, C, H, W) at the places `where` (B, 3, 3, see `geometry`) names; beyond the borders they mirror.

    At twice the resolution, between orthonormal low-pass filters: a map by whole pixels changes no value.
    """
    height, width = images.shape[2:]
    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device)
    centre = float((taps * torch.arange(len(taps), device=taps.device)).sum() / taps.sum())
    wide = mirrored(mirrored(images, 2), 3)
    fine = _along(_along(wide, taps, 2, up=True), taps, 3, up=True)

    def places(count: int) -> Tensor:
        """Position in pixels from the middle of every sample of a fine grid that the filter will read."""
        n = torch.arange(2 * count + len(taps) - 2, dtype=images.dtype, device=images.device)
        return (n - centre) / 2 + 0.5 - count / 2

    y, x = torch.meshgrid(places(height), places(width), indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], -1)
    source = torch.einsum("bij,hwj->bhwi", where, at)
    grid = [
        _normalised(source[..., axis], count, fine.shape[3 - axis], centre)
        for axis, count in ((0, width), (1, height))
    ]
    fine = cast(Tensor, _Sampled.apply(fine, torch.stack(grid, -1)))
    return _along(_along(fine, taps, 2, up=False), taps, 3, up=False)


class _Sampled(torch.autograd.Function):
    """Bilinear `grid_sample`, which not every release of PyTorch and device differentiates twice: by the images, of
    which it is linear, it can be done any number of times."""

    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return cast(Tensor, _Scattered.apply(gradients[0], grid, ctx.shape)), None


class _Scattered(torch.autograd.Function):
    """The transpose of `_Sampled`."""

    @staticmethod
    def forward(ctx, values: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        anything = values.new_empty(shape)  # the gradient by linear images does not depend on them
        made, _ = torch.ops.aten.grid_sampler_2d_backward(values, anything, grid, 0, 1, True, [True, False])
        return made

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return cast(Tensor, _Sampled.apply(gradients[0], grid)), None, None


def _normalised(place: Tensor, count: int, samples: int, centre: float) -> Tensor:
    """Places in pixels from the middle -> coordinates of `grid_sample` on the fine grid; far ones are mirrored."""
    place = place + count / 2
    inside = place % (2 * count)
    inside = torch.minimum(inside, 2 * count - inside)
    place = torch.where((place > -SEEN) & (place < count + SEEN), place, inside)
    index = 2 * (place - 0.5 + BORDER) + centre
    return index * (2 / (samples - 1)) - 1


def mirrored(x: Tensor, axis: int) -> Tensor:
    """`BORDER` pixels more on both sides of an axis, the border pixel among them."""
    count = x.shape[axis]
    index = torch.arange(-BORDER, count + BORDER, device=x.device) % (2 * count)
    return x.index_select(axis, torch.minimum(index, 2 * count - 1 - index))


def _along(x: Tensor, taps: Tensor, axis: int, up: bool) -> Tensor:
    """Doubles or halves the resolution along an axis of (B, C, H, W).

    As a product with a matrix: convolutions of one channel are ten times as slow on CPUs.
    """
    each, kernel = torch.eye(x.shape[axis], dtype=x.dtype, device=x.device)[:, None], taps.view(1, 1, -1)
    matrix = (
        F.conv_transpose1d(each, kernel * math.sqrt(2), stride=2)
        if up
        else F.conv1d(each, kernel / math.sqrt(2), stride=2)
    )[:, 0]
    return matrix.T @ x if axis == 2 else x @ matrix
