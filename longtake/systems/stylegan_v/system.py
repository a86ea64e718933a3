"""StyleGAN-V (Skorokhodov et al., "StyleGAN-V: a continuous video generator with the price, image quality and perks
of StyleGAN2", CVPR 2022), and its baseline MoCoGAN-SG2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.errors import UserError
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import ModelInfo, Stage, System
from longtake.systems.stylegan_v.config import MOCOGAN_SIZES, SIZES, StyleGANVConfig, StyleGANVSettings
from longtake.systems.stylegan_v.discriminator import Discriminator, VideoDiscriminator
from longtake.systems.stylegan_v.generator import Generator
from longtake.systems.stylegan_v.rollout import stream
from longtake.systems.stylegan_v.stages import GANStage


class StyleGANV(System):
    """A generator whose every frame is a function of content, motion and time, trained on sparse clips."""

    name: ClassVar[str] = "stylegan_v"
    config_class: ClassVar[type] = StyleGANVConfig
    settings_class: ClassVar[type] = StyleGANVSettings
    sizes: ClassVar[dict] = SIZES
    accepts = frozenset({"label"})
    any_fps: ClassVar[bool] = True
    config: StyleGANVConfig
    settings: StyleGANVSettings

    def __init__(self, config: StyleGANVConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = StyleGANVSettings()
        if config.condition == "label" and not info.classes:
            raise UserError("a model of classes needs a library with classes; use config.condition=none")
        self.classes = len(info.classes) if config.condition == "label" else 0
        self.accepts = frozenset({"label"}) if self.classes else frozenset()
        self.generator = Generator(config.size, config.mapping, config.motion, config.synthesis, self.classes)
        critic, frames = config.discriminator, config.frames
        both = critic.kind == "image+video"
        self.discriminator = Discriminator(critic, config.size, 1 if both else frames, self.classes)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        if both:
            self.networks["video_discriminator"] = VideoDiscriminator(config.size, critic.video_width)
        self.saved: tuple[str, ...] = ("generator",)
        """Networks of a model folder; a converted model brings its discriminator, to be trained on."""

    @property
    def inference(self) -> tuple[str, ...]:
        return self.saved

    @property
    def seam_period(self) -> int | None:
        """Motion tokens are where its pieces join; None where they do not lie on whole frames."""
        spacing = self.config.motion.spacing
        return int(spacing) if spacing > 1 and spacing == int(spacing) else None

    def stages(self) -> list[Stage]:
        return [GANStage(self)]

    def one_hot(self, label: Tensor) -> Tensor:
        """Class indices (B,) -> (B, classes), float; no columns if the model has no classes."""
        if not self.classes:
            return torch.zeros(len(label), 0, device=label.device)
        return F.one_hot(label, self.classes).float()

    def judge(self, frames: Tensor, times: Tensor, label: Tensor) -> list[Tensor]:
        """Logits of every discriminator for clips (B, 3, F, H, W) at times (B, F) under one-hot labels.

        The first are of clips (B,), or of single frames (B * F,) where there is a video discriminator too.
        """
        if "video_discriminator" not in self.networks:
            return [self.discriminator(frames, times, label)]
        singles = frames.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        labels = label.repeat_interleave(frames.shape[2], 0)
        single = self.discriminator(singles, times.reshape(-1, 1), labels)
        return [single, self.networks["video_discriminator"](frames)]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StyleGANV:
        """A lower precision is for the synthesis network alone: what makes codes multiplies errors by a hundred."""
        super().to(device)
        if dtype is not None:
            self.generator.synthesis.to(dtype)
        return self

    def compile(self) -> None:
        """The synthesis network is what takes the time."""
        self.generator.synthesis.compile()

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `stylegan_v.rollout.stream`."""
        return stream(self, stories, rng)


class MoCoGANSG2(StyleGANV):
    """MoCoGAN with StyleGAN2's networks (paper section 4): motion from an LSTM, frame by frame, beside the styles,
    and two discriminators, of frames and of 16 consecutive ones.

    Frames cannot be made out of order, nor at another rate. The released code of it does not run; this follows its
    parts and the paper.
    """

    name: ClassVar[str] = "mocogan_sg2"
    sizes: ClassVar[dict] = MOCOGAN_SIZES
    any_fps: ClassVar[bool] = False
