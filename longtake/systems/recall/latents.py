"""Latent spaces and codes: what the encoders give, what the generator takes, and arithmetic with them.

Shapes: B clips, T frames; d_x, d_v widths of the content and the motion code; L places of a motion code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLIP = 16
"""Frames of a clip (T_c = 15 in the thesis is the last one's index)."""
LOGVAR_RANGE = (-10.0, 10.0)


@dataclass(frozen=True)
class Codes:
    """What the generator makes a clip of."""

    content: Tensor
    """(B, d_x)"""
    motion: Tensor
    """(B, d_v, L)"""

    def __add__(self, other: Codes) -> Codes:
        """Both codes summed (Fig. 3.11 and 4.10 e): the clip takes something of either."""
        return Codes(self.content + other.content, self.motion + other.motion)

    def with_motion(self, other: Codes) -> Codes:
        """This content in another's motion (Fig. 3.10 and 4.10 c, d)."""
        return Codes(self.content, other.motion)

    def to(self, device: torch.device | str) -> Codes:
        """The same elsewhere."""
        return Codes(self.content.to(device), self.motion.to(device))

    @staticmethod
    def cat(parts: list[Codes]) -> Codes:
        """Several batches as one."""
        return Codes(torch.cat([p.content for p in parts]), torch.cat([p.motion for p in parts]))


@dataclass(frozen=True)
class LatentSpace:
    """Two Gaussians a clip, with diagonal covariance."""

    content_mean: Tensor
    """(B, d_x)"""
    content_logvar: Tensor
    motion_mean: Tensor
    """(B, d_v)"""
    motion_logvar: Tensor

    def mean(self) -> Codes:
        """The codes in the middle."""
        return Codes(self.content_mean, self.motion_mean[..., None])

    def at(self, noise: Codes) -> Codes:
        """mean + deviation * noise. Noise (B, d_x) and (B, d_v, L), or with more clips than B: so many a space,
        those of one space beside each other."""
        times = len(noise.content) // len(self.content_mean)
        mean_x, scale_x, mean_v, scale_v = (
            t.repeat_interleave(times, 0)
            for t in (
                self.content_mean,
                (0.5 * self.content_logvar).exp(),
                self.motion_mean[..., None],
                (0.5 * self.motion_logvar).exp()[..., None],
            )
        )
        return Codes(mean_x + scale_x * noise.content, mean_v + scale_v * noise.motion)

    def token(self) -> Tensor:
        """(B, 2 (d_x + d_v)): mean and log-variance of content, then of motion (section 5.4.2: the latent space is
        the token; log-variance, so that a predicted one gives a positive variance)."""
        return torch.cat([self.content_mean, self.content_logvar, self.motion_mean, self.motion_logvar], 1)

    @staticmethod
    def of_token(token: Tensor, content: int, motion: int) -> LatentSpace:
        """The space that a token (B, 2 (d_x + d_v)) stands for; log-variances are kept in their range."""
        mean_x, logvar_x, mean_v, logvar_v = token.split([content, content, motion, motion], 1)
        return LatentSpace(mean_x, logvar_x.clamp(*LOGVAR_RANGE), mean_v, logvar_v.clamp(*LOGVAR_RANGE))


def difference_maps(clip: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, T-1, H, W): v_t = x_(t-1) - x_t (Eq. 3.3)."""
    return clip[:, :, :-1] - clip[:, :, 1:]


def integrate(frame: Tensor, maps: Tensor, index: int) -> Tensor:
    """The clip of which `frame` (B, 3, H, W) is number `index` and `maps` (B, 3, T-1, H, W) the difference maps.

    Eq. 4.2 and 4.3 with the signs that fit Eq. 3.3: x_j = x_(j-1) - v_j forwards, x_j = x_(j+1) + v_(j+1)
    backwards.
    """
    before = maps[:, :, :index].flip(2).cumsum(2).flip(2)
    after = -maps[:, :, index:].cumsum(2)
    frame = frame.unsqueeze(2)
    return torch.cat([frame + before, frame, frame + after], 2)
