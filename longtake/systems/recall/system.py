"""The recall family as systems: EncGAN3, LEncGAN, R2, improved R2, AR2 and R3.

Jingbo Yang, "Long Video Generation using the VAE-GAN method", PhD thesis, University of York, 2024.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.rollout.given import count_first_frames
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import ModelInfo, Stage, System
from longtake.systems.recall import config as sizes
from longtake.systems.recall import rollout
from longtake.systems.recall.config import (
    AR2Config,
    ClipGANConfig,
    EncGAN3Config,
    EncGAN3Settings,
    ImprovedR2Settings,
    LEncGANConfig,
    R2Config,
    R2Settings,
    R3Config,
    R3Settings,
)
from longtake.systems.recall.discriminators import ImageDiscriminator, VideoDiscriminator
from longtake.systems.recall.encoder import Encoder
from longtake.systems.recall.generator import Generator
from longtake.systems.recall.latents import CLIP, Codes, LatentSpace
from longtake.systems.recall.lstm import LSTMEncoder
from longtake.systems.recall.planner import Planner
from longtake.systems.recall.planning import PlannerStage
from longtake.systems.recall.stages import AR2Stage, EncGAN3Stage, LEncGANStage, R2Stage


class ClipGAN(System):
    """What the family shares: an encoder of clips, a generator, and the discriminators of frames and of clips."""

    settings_class: ClassVar[type] = R2Settings
    rejects: ClassVar[bool] = True
    """Whether rollouts ask the video discriminator."""
    config: Any
    settings: Any

    def __init__(self, config: ClipGANConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = self.settings_class()
        blocks = config.generator.blocks
        try:
            self.generator = Generator(config.generator, config.size)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}", code=2) from None
        encoder = self.make_encoder()
        self.networks = {
            **({} if encoder is None else {"encoder": encoder}),
            "generator": self.generator,
            "video_discriminator": VideoDiscriminator(config.critics, blocks, config.size),
            "image_discriminator": ImageDiscriminator(config.critics, blocks, config.size),
        }

    def make_encoder(self) -> nn.Module | None:
        """The encoder, if there is one."""
        config = self.config
        codes = (config.generator.content, config.generator.motion)
        return Encoder(config.encoder, codes, config.generator.blocks, config.size, self.reference)

    @property
    def reference(self) -> int:
        """The frame of a clip that content is read off."""
        return 0

    @property
    def inference(self) -> tuple[str, ...]:
        training = ("image_discriminator", *(() if self.rejects else ("video_discriminator",)))
        return tuple(name for name in self.networks if name not in training)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights; what they are given is brought to it."""
        return next(self.generator.parameters()).dtype

    def encode(self, clip: Tensor) -> LatentSpace:
        """Clips (B, 3, 16, H, W) in [-1, 1] -> their latent spaces."""
        if self.networks["encoder"].training:
            self._check_norm(len(clip))
        return self.networks["encoder"](clip.to(self.dtype))

    def decode(self, codes: Codes) -> Tensor:
        """Codes of L places -> clips (B, 3, 4 (L + 3), H, W) in (-1, 1)."""
        return self.generator(codes.content.to(self.dtype), codes.motion.to(self.dtype))

    def _check_norm(self, clips: int) -> None:
        """Batch norm after a fully connected layer needs two clips a pass."""
        if self.config.encoder.norm == "batch" and clips == 1:
            raise UserError(
                f"{self.name}: batch norm cannot learn from one clip; raise stage.batch, lower loop.accumulate, "
                "or use encoder.norm=layer",
                code=2,
            )


class EncGAN3(ClipGAN):
    """One clip at once, from noise or from a clip (chapter 3); without an encoder G3AN."""

    name: ClassVar[str] = "encgan3"
    config_class: ClassVar[type] = EncGAN3Config
    settings_class: ClassVar[type] = EncGAN3Settings
    rejects = False
    sizes: ClassVar[dict] = sizes.ENCGAN3_SIZES
    accepts = frozenset({"source_video"})
    max_frames = 92
    """As in Fig. 3.13: a motion code of 20 places. It was trained on 16 frames and gets worse beyond."""

    def __init__(self, config: EncGAN3Config, info: ModelInfo):
        super().__init__(config, info)
        self.accepts = frozenset({"source_video"} if config.encode else ())

    def make_encoder(self) -> nn.Module | None:
        return super().make_encoder() if self.config.encode else None

    def stages(self) -> list[Stage]:
        if self.config.encode:
            self._check_norm(self.config.stage.batch)
        return [EncGAN3Stage(self)]

    def check(self, story: Story) -> Story:
        story = super().check(story)
        if story.source_video is not None:
            rollout.check_clip(self, story)
        return story

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `recall.rollout.one_clip`."""
        return rollout.one_clip(self, stories, rng)


class LEncGAN(ClipGAN):
    """Clips of a source video re-created one after another, with LSTM states that go on (section 4.2)."""

    name: ClassVar[str] = "lencgan"
    config_class: ClassVar[type] = LEncGANConfig
    settings_class: ClassVar[type] = EncGAN3Settings
    rejects = False
    sizes: ClassVar[dict] = sizes.LENCGAN_SIZES
    requires = frozenset({"source_video"})
    seam_period, seam_first = CLIP - 1, CLIP  # shared frames are shown once, as the earlier clip has them

    def make_encoder(self) -> nn.Module:
        return LSTMEncoder(self.config)

    def encode(self, clip: Tensor) -> LatentSpace:
        """As the first clip of a chain."""
        return self.encode_after(clip, None)[0]

    def encode_after(self, clip: Tensor, state: Tensor | None) -> tuple[LatentSpace, Tensor]:
        """Clips and the states (B, 4, n) they inherit -> their latent spaces, and the states to go on with."""
        return self.networks["encoder"](clip.to(self.dtype), None if state is None else state.to(self.dtype))

    def stages(self) -> list[Stage]:
        return [LEncGANStage(self)]

    def check(self, story: Story) -> Story:
        story = super().check(story)
        rollout.check_source(self, story, CLIP - 1)
        return story

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `recall.rollout.chain`."""
        return rollout.chain(self, stories, rng)


class R2(ClipGAN):
    """REncGAN: overlapping clips of a source video re-created, so that they fit together (section 4.4)."""

    name: ClassVar[str] = "r2"
    config_class: ClassVar[type] = R2Config
    sizes: ClassVar[dict] = sizes.R2_SIZES
    requires = frozenset({"source_video"})

    @property
    def stride(self) -> int:
        """Frames from the beginning of a clip to that of the next."""
        return self.config.stride

    @property
    def reference(self) -> int:
        return self.config.reference

    @property
    def seam_period(self) -> int | None:
        return self.stride

    def stages(self) -> list[Stage]:
        return [R2Stage(self)]

    def check(self, story: Story) -> Story:
        story = super().check(story)
        if "source_video" in self.requires:
            rollout.check_source(self, story, self.stride)
        return story

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `recall.rollout.recall`."""
        return rollout.recall(self, stories, rng)


class ImprovedR2(R2):
    """R2 with a 3D video stream, one more block at 128 pixels, and rejection when it generates (section 5.2)."""

    name: ClassVar[str] = "r2-improved"
    sizes: ClassVar[dict] = sizes.IMPROVED_R2_SIZES
    settings_class: ClassVar[type] = ImprovedR2Settings


class GoesOn(ClipGAN):
    """What goes on from given frames, of which it makes the last half clip anew (Algorithm 11)."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Frames from the beginning of a clip to that of the next."""

    def given_frames(self, stories: list[Story]) -> int:
        return rollout.count_given(self, stories)

    def seen_frames(self, stories: list[Story]) -> int:
        return count_first_frames(stories)

    def check(self, story: Story) -> Story:
        story = super().check(story)
        rollout.count_given(self, [story])
        return story


class AR2(GoesOn):
    """Each clip predicted from the one before, the first made of noise (section 5.3)."""

    name: ClassVar[str] = "ar2"
    config_class: ClassVar[type] = AR2Config
    settings_class: ClassVar[type] = ImprovedR2Settings
    sizes: ClassVar[dict] = sizes.AR2_SIZES
    accepts = frozenset({"first_frames"})
    seam_period = CLIP // 2

    @property
    def stride(self) -> int:
        return CLIP // 2

    @property
    def reference(self) -> int:
        return self.stride

    def stages(self) -> list[Stage]:
        self._check_norm(self.config.stage.batch)
        return [AR2Stage(self)]

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `recall.rollout.predict`."""
        return rollout.predict(self, stories, rng)


class R3(R2, GoesOn):
    """Improved R2, whose latent spaces a GPT plans from those of a given clip on (section 5.4)."""

    name: ClassVar[str] = "r3"
    config_class: ClassVar[type] = R3Config
    settings_class: ClassVar[type] = R3Settings
    sizes: ClassVar[dict] = sizes.R3_SIZES
    accepts = frozenset({"label"})
    requires = frozenset({"first_frames"})

    def __init__(self, config: R3Config, info: ModelInfo):
        super().__init__(config, info)
        codes = config.generator
        token = 2 * (codes.content + codes.motion)
        if (config.planner.width or token) % config.planner.heads:
            raise UserError(
                f"a planner of width {config.planner.width or token} cannot be split into {config.planner.heads} "
                "heads; change planner.heads or planner.width",
                code=2,
            )
        self.accepts = frozenset({"label"} if config.planner.format == "mixed" else ())
        self.planner = Planner(config.planner, token, len(info.classes))
        self.networks["planner"] = self.planner

    def stages(self) -> list[Stage]:
        return [*super().stages(), PlannerStage(self)]

    def compile(self) -> None:
        """All but the planner, whose sequence is another token long at each step: it would be compiled anew."""
        for name in ("encoder", "generator", "video_discriminator"):
            self.networks[name].compile()

    def space_of(self, token: Tensor) -> LatentSpace:
        """The latent spaces that tokens (B, D) stand for."""
        codes = self.config.generator
        return LatentSpace.of_token(token, codes.content, codes.motion)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `recall.rollout.planned`."""
        return rollout.planned(self, stories, rng)
