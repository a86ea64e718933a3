"""A distorted view of a frame to decode it from, and the flow that undoes it (paper section 3.2, appendices C, F).

The context is the frame warped by a smooth random field and a zoom, blurred, and occluded in blobs; the target is
the frame itself. Flow and occlusion from context to target are known, and teach the flow module.

Shapes: B frames, H W. Flow (x, y) in pixels: the target at p is the context at p + flow(p).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.rollout.rng import Rng
from longtake.systems.ccvs.flow import backwarp

INVERSION_SPREAD = 0.5
"""Of the 3x3 Gaussian that fills the gaps of an inverted flow."""
TRUNCATE = 4
"""Standard deviations at which the smoothing of noise ends."""


@dataclass(frozen=True)
class AugmentationConfig:
    """How strong the distortions are; the defaults are those of all released models but Kinetics."""

    alpha: float = 3.0
    """Strength of the elastic field, in frame heights before smoothing (Kinetics 2). With sigma 0.1 the field
    displaces by about 1.8 * alpha pixels, whatever the frame's size."""
    sigma: float = 0.1
    """Standard deviation of its smoothing, in frame heights (Kinetics 0.3); also of the blobs."""
    zoom: tuple[float, float] = (0.9, 1.1)
    """Range of the zoom of the context against the target."""
    blur: float = 2.0
    """Largest standard deviation of the context's blur, in pixels."""
    occluded: float = 0.5
    """0.5 hides about half of the context, 0 nothing; between them the share depends on alpha and sigma."""

    def __post_init__(self):
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom {self.zoom} must be a range above 0, smallest first")


class View(NamedTuple):
    """What an augmentation gives."""

    context: Tensor
    """(B, 3, H, W) distorted, blurred, 0 where occluded."""
    target: Tensor
    """(B, 3, H, W) the frame, enlarged where the context is to look smaller."""
    flow: Tensor
    """(B, 2, H, W) in pixels."""
    occluded: Tensor
    """(B, 1, H, W) bool, in the target's place: what the context does not show."""


def augment(frames: Tensor, rng: Rng, ids: list[int], config: AugmentationConfig) -> View:
    """A random view of each of `frames` (B, 3, H, W); its noise is addressed by the sample numbers `ids`.

    Computed as precisely as `frames`, also under autocast.
    """
    h, w = frames.shape[-2:]
    numbers = rng.uniform("view", ids, (2,))[0]
    zoom = config.zoom[0] + numbers[:, 0] * (config.zoom[1] - config.zoom[0])
    with torch.autocast(frames.device.type, enabled=False):
        noise = rng.uniform("fields", ids, (3, h, w))[0].to(frames) * 2 - 1
        field = smooth(noise, config.sigma * h) * (config.alpha * h)
        hidden = field[:, 2:] > 1 - 2 * config.occluded if config.occluded else torch.zeros_like(field[:, 2:]) > 0
        return make_view(frames, field[:, :2], hidden, zoom.to(frames), numbers[:, 1].to(frames) * config.blur)


def make_view(
    frames: Tensor, elastic: Tensor, hidden: Tensor, zoom: Tensor, blur: Tensor, official_wrap: bool = False
) -> View:
    """The view that given fields make.

    As in the released code, the inverse of elastic field and zoom together is the sum of both inverses, and a zoom
    is inverted by its negative: good to a few hundredths of the displacement.

    Args:
        frames: (B, 3, H, W).
        elastic: (B, 2, H, W) displacement of the context, pixels.
        hidden: (B, 1, H, W) bool, what to occlude of the context.
        zoom: (B,); 1 or more enlarges the context, less enlarges the target instead by its inverse.
        blur: (B,) standard deviation of the context's blur, pixels.
        official_wrap: see `invert_flow`.
    """
    larger = (zoom >= 1).view(-1, 1, 1, 1)
    scaling = zoom_flow(zoom, *frames.shape[-2:])
    context = backwarp(frames, torch.where(larger, elastic + scaling, elastic))
    target = torch.where(larger, frames, backwarp(frames, scaling))
    flow = invert_flow(elastic, official_wrap) + torch.where(larger, -scaling, scaling)
    context = gaussian_blur(context, blur) * ~hidden
    occluded = backwarp(hidden.to(frames), flow, outside=1.0) > 0.5
    return View(context, target, flow, occluded)


def zoom_flow(zoom: Tensor, h: int, w: int) -> Tensor:
    """The flow (B, 2, H, W) that enlarges about the centre by `zoom` (B,), or by 1 / zoom where that is above 1."""
    shrink = 1 - torch.minimum(zoom, 1 / zoom).view(-1, 1, 1)
    x = torch.linspace(0.5, -0.5, w, dtype=zoom.dtype, device=zoom.device) * w * shrink
    y = torch.linspace(0.5, -0.5, h, dtype=zoom.dtype, device=zoom.device).view(-1, 1) * h * shrink
    return torch.stack([x.expand(-1, h, w), y.expand(-1, h, w)], 1)


def invert_flow(flow: Tensor, official_wrap: bool = False) -> Tensor:
    """An approximate inverse of `flow` (B, 2, H, W), pixels (appendix C).

    Every pixel writes its reversed displacement where it points to, the last in raster order where several do; gaps
    are filled from the rims inwards with Gaussian means of what is known. Displacements beyond the borders are
    clamped to them; the released code sends those beyond the right and lower border to index 0, which is the quirk
    `official_wrap`.
    """
    batch, _, h, w = flow.shape
    ys, xs = torch.meshgrid(torch.arange(h, device=flow.device), torch.arange(w, device=flow.device), indexing="ij")
    x, y = xs + flow[:, 0], ys + flow[:, 1]
    if official_wrap:
        x, y = x * (x <= w - 1), y * (y <= h - 1)
    target = (y.clamp(0, h - 1).long() * w + x.clamp(0, w - 1).long()).flatten(1)
    source = torch.arange(h * w, device=flow.device).expand(batch, -1)
    last = torch.full_like(target, -1).scatter_reduce(1, target, source, "amax")
    known = (last >= 0).view(batch, 1, h, w)
    inverse = -flow.flatten(2).gather(2, last.clamp_min(0)[:, None].expand(-1, 2, -1)).view_as(flow) * known
    offsets = torch.tensor([1.0, 0.0, 1.0], dtype=flow.dtype, device=flow.device)
    kernel = torch.exp(-(offsets[:, None] + offsets) / (2 * INVERSION_SPREAD**2))
    cross = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=flow.dtype, device=flow.device)
    while not known.all():
        mass = known.to(flow)
        rim = (F.conv2d(mass, cross[None, None], padding=1) > 0) & ~known
        sums = F.conv2d(inverse, kernel.expand(2, 1, 3, 3), padding=1, groups=2)
        mean = sums / F.conv2d(mass, kernel[None, None], padding=1).clamp_min(1e-12)
        inverse, known = torch.where(rim, mean, inverse), known | rim
    return inverse


def smooth(noise: Tensor, sigma: float) -> Tensor:
    """`noise` (..., H, W) under a Gaussian of `sigma` pixels, mirrored at the borders."""
    rows, columns = (_smoothing(n, sigma).to(noise) for n in noise.shape[-2:])
    return rows @ noise @ columns.t()


def _smoothing(n: int, sigma: float) -> Tensor:
    """The matrix (n, n) that smooths a line of n numbers."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)) ** 2)
    place = (torch.arange(n)[:, None] + offsets) % (2 * n)
    mirrored = torch.minimum(place, 2 * n - 1 - place)
    return torch.zeros(n, n).scatter_add(1, mirrored, (weights / weights.sum()).expand(n, -1))


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur each of `x` (B, C, H, W) by its own `sigma` (B,), pixels; mirrored at the borders.

    A kernel has 3 sigma taps, made odd upwards, at least 3 and at most 13.
    """
    taps = ((3 * sigma).int() // 2 * 2 + 1).clamp(3, 13)
    radius = int(taps.max()) // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-6)[:, None]) ** 2)
    weights = weights * (offsets.abs() <= taps[:, None] // 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(x.dtype)
    batch, channels = x.shape[:2]
    planes = F.pad(x, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    kernel = weights.repeat_interleave(channels, 0)[:, None]
    planes = F.conv2d(planes, kernel[:, :, :, None], groups=batch * channels)
    return F.conv2d(planes, kernel[:, :, None], groups=batch * channels)[0].unflatten(0, (batch, channels))
