"""The generator: content, motion and synthesis together (paper section 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longtake.systems.stylegan_v.layers import EqualLinear, full_precision
from longtake.systems.stylegan_v.mapping import Mapping, MappingConfig
from longtake.systems.stylegan_v.motion import AcyclicMotion, MotionConfig, RecurrentMotion
from longtake.systems.stylegan_v.synthesis import Synthesis, SynthesisConfig


class Generator(nn.Module):
    """Noise, labels and times to frames; every frame is a function of its time."""

    def __init__(
        self,
        size: tuple[int, int],
        mapping: MappingConfig,
        motion: MotionConfig,
        synthesis: SynthesisConfig,
        classes: int = 0,
    ):
        super().__init__()
        self.classes, self.into = classes, motion.into
        self.mapping = Mapping(mapping, classes)
        recurrent = motion.codes == "lstm"
        self.motion = RecurrentMotion(motion, classes) if recurrent else AcyclicMotion(motion, classes)
        beside = motion.into == "styles"
        self.styler = MotionStyler(motion.code, motion.width) if beside else None
        style = mapping.width + (motion.width if beside else 0)
        self.synthesis = Synthesis(synthesis, size, style, 0 if beside else motion.code)
        self.noise = (mapping.noise, motion.noise)

    def draw(self, times: Tensor, span: float) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh noise for videos seen at `times` (B, F), no two of one video more than `span` apart.

        Returns:
            Content noise, motion noise and the number of its first token, as `forward` takes them. From PyTorch's
            generator; only the tokens that these times depend on are drawn.
        """
        spacing, reach = self.motion.config.spacing, self.motion.reach
        if isinstance(self.motion, RecurrentMotion):
            first = torch.zeros(len(times), dtype=torch.long, device=times.device)
            count = int(times.max().div(spacing).floor()) + 2
        else:
            first = times.amin(1).div(spacing).floor().long()
            count = math.ceil(span / spacing) + 2
        z = torch.randn(len(times), self.noise[0], device=times.device)
        return z, torch.randn(len(times), count + reach, self.noise[1], device=times.device), first

    def forward(self, ws: Tensor, noise: Tensor, first: Tensor, times: Tensor, label: Tensor) -> Tensor:
        """Frames (B, 3, F, H, W), about [-1, 1].

        Args:
            ws: styles (B, L, W), L of them or 1 for all layers.
            noise, first, times: see `AcyclicMotion.forward`.
            label: one-hot (B, classes).
        """
        code = self.motion(noise, label, first, times)
        return self.frames(ws, code)

    def frames(self, ws: Tensor, code: Tensor) -> Tensor:
        """Frames (B, 3, F, H, W) of styles (B, L or 1, W) and motion codes (B, F, code)."""
        b, f = code.shape[:2]
        code, modulations = self.modulate(ws, code)
        return self.synthesis(code, modulations).unflatten(0, (b, f)).transpose(1, 2)

    def modulate(self, ws: Tensor, code: Tensor):
        """Inputs (B * F, code) and modulations of the synthesis network, one style a frame."""
        ws = ws.expand(-1, self.synthesis.styles, -1).repeat_interleave(code.shape[1], 0)
        code = code.flatten(0, 1)
        if self.styler is not None:
            beside = self.styler(code).unsqueeze(1).expand(-1, ws.shape[1], -1)
            ws, code = torch.cat([ws, beside.to(ws.dtype)], 2), code[:, :0]
        return code, self.synthesis.modulate(ws)


class MotionStyler(nn.Module):
    """MoCoGAN-SG2: a perceptron of two layers makes of a motion code (N, code) what stands beside the style."""

    def __init__(self, code: int, width: int):
        super().__init__()
        layers = (
            EqualLinear(code, width, rate=0.01, active=True),
            EqualLinear(width, width, rate=0.01, active=True),
        )
        self.layers = nn.Sequential(*layers)

    @full_precision
    def forward(self, code: Tensor) -> Tensor:
        return self.layers(code)
