"""Configuration of StyleGAN-V and its named sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from longtake.config import check_range
from longtake.data.clips import Sparse, Step
from longtake.systems.stylegan_v.augment import AugmentConfig
from longtake.systems.stylegan_v.discriminator import DiscriminatorConfig
from longtake.systems.stylegan_v.mapping import MappingConfig
from longtake.systems.stylegan_v.motion import MotionConfig
from longtake.systems.stylegan_v.synthesis import SynthesisConfig

LATEST = 2.0**40
"""Latest time of a frame, in frames: its place between two motion tokens is exact to a thousandth."""


@dataclass(frozen=True)
class GANStageConfig:
    """How generator and discriminator are trained (paper section 4.1: as StyleGAN2)."""

    steps: int = 130_000
    """Updates (25 million frames in the released configuration)."""
    batch: int = 64
    """Videos an update and process."""
    lr: float = 0.0025
    """Learning rate of both Adam optimisers, before the correction for lazy regularisation (1024 pixels: 0.002)."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Their decay rates, before the correction."""
    gamma: float | None = None
    """Weight of R1; None: 0.0002 * pixels of a frame / videos an update of all processes."""
    gamma_every: int = 16
    """Updates between two of R1, which then counts so many times."""
    path_weight: float = 0.0
    """Weight of path length regularisation (StyleGAN2: 2; off in StyleGAN-V). It is an update of its own, as in
    StyleGAN2, and moves the averaged weights once more, so that `ema` decays every path_every updates once more."""
    path_every: int = 4
    """Updates between two of it; the learning rate is corrected for it also while it is off, as in the released
    training."""
    mixing: float = 0.0
    """Probability that a video has two styles, one up to a random layer (off in StyleGAN-V)."""
    mirror: bool = True
    """Also learn from the mirrored videos."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Adaptive augmentation."""
    video_lr: float = 0.1
    """Factor on the learning rate of MoCoGAN's video discriminator."""
    ema: float | None = 0.99778
    """Decay of averaged weights (half-life 20,000 videos at a batch of 64)."""

    def __post_init__(self):
        check_range(self, "batch gamma_every path_every", 1)
        check_range(self, "steps lr gamma path_weight video_lr", 0)
        check_range(self, "betas mixing ema", 0, 1)


@dataclass(frozen=True)
class StyleGANVConfig:
    """A generator of frames at any time and a discriminator of a few of them."""

    frames: int = 3
    """Frames of a training clip (k); 1 trains an image StyleGAN2."""
    size: tuple[int, int] = (256, 256)
    """(height, width) of a frame."""
    sampling: Literal["uniform", "octaves", "consecutive"] = "uniform"
    """Frames between the first and the last of a clip: "uniform" in [frames - 1, distance] (paper section 3.3),
    "octaves", the powers of two among these (released code), or "consecutive" frames (MoCoGAN)."""
    distance: int = 32
    """Longest distance between the first and the last frame of a clip."""
    horizon: int = 1024
    """Frames of the time that is trained: clips are made within it."""
    condition: Literal["none", "label"] = "none"
    """What steers a video beside its noise."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """Content."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """Motion."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    """Frames."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Who judges."""
    stage: GANStageConfig = field(default_factory=GANStageConfig)
    """Training."""

    def __post_init__(self):
        check_range(self, "size", 1)
        if self.frames < 1 or (self.sampling != "consecutive" and not self.distances):
            text = f"clips of {self.frames} frames, {self.sampling}, do not fit a distance of {self.distance}"
            raise ValueError(f"{text}; raise distance or lower frames")
        if self.horizon <= self.longest:
            raise ValueError(f"a horizon of {self.horizon} frames is too short for clips of {self.longest + 1}")
        if self.discriminator.kind == "image+video" and (self.sampling != "consecutive" or self.frames < 16):
            raise ValueError(
                'an "image+video" discriminator sees 16 or more consecutive frames: set frames, sampling'
            )

    @property
    def mode(self) -> Sparse | Step:
        """How real clips are drawn."""
        if self.sampling == "consecutive":
            return Step()
        return Sparse(self.distance if self.sampling == "uniform" else tuple(self.distances) or (1,))

    @property
    def distances(self) -> list[int]:
        """Distances between the first and the last frame of a clip, all equally likely."""
        if self.sampling == "consecutive" or self.frames == 1:
            return [self.frames - 1]
        every = range(self.frames - 1, self.distance + 1)
        return [d for d in every if self.sampling == "uniform" or d & (d - 1) == 0]

    @property
    def longest(self) -> int:
        """The longest of them."""
        return max(self.distances)


@dataclass(frozen=True)
class StyleGANVSettings:
    """What can be chosen at generation time."""

    truncation: float = 1.0
    """How far styles keep from their centre: 1 all the way, 0 not at all (psi)."""
    truncation_layers: int | None = None
    """The coarsest so many styles are truncated; None: all."""
    truncation_centre: Literal["average", "class"] = "average"
    """Average style of all videos, or of those of the same class."""
    motion_seed: int | None = None
    """Seed of the motion; None: that of the video, which is the seed of its content."""
    start: float = 0.0
    """Time of the first frame, in frames of the training videos."""
    latent: str | None = None
    """File with the styles of a projected or edited image, to be animated."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic of the synthesis network."""

    def __post_init__(self):
        check_range(self, "start", 0, LATEST)
        check_range(self, "truncation", -math.inf)
        check_range(self, "truncation_layers", 0)
        if self.latent is not None and self.truncation != 1:
            raise ValueError("latent brings styles that are not truncated; leave truncation at 1")


_TINY = StyleGANVConfig(
    size=(16, 16),
    distance=8,
    mapping=MappingConfig(16, 16),
    motion=MotionConfig(noise=16, width=16, waves=8, kernel=5, spacing=8.0, shortest=8.0),
    synthesis=SynthesisConfig(base=128, most=16),
    discriminator=DiscriminatorConfig(base=128, most=16, embedding=16, join=8, video_width=8),
    stage=GANStageConfig(steps=20, batch=4, ema=0.9),
)
_SMALL = StyleGANVConfig(
    size=(64, 64),
    condition="label",
    mapping=MappingConfig(128, 128),
    motion=MotionConfig(noise=64, width=128, waves=64),
    synthesis=SynthesisConfig(base=2048, most=128),
    discriminator=DiscriminatorConfig(base=2048, most=128, embedding=64),
    stage=GANStageConfig(
        steps=20_000,
        batch=8,
        gamma=2.0,
        mirror=False,
        augment=AugmentConfig(target=None, start=0.2, mirror=False, turns=False, colour=False),
        ema=0.998,
    ),
)
_BASE = StyleGANVConfig(
    size=(128, 128),
    synthesis=SynthesisConfig(base=16_384, most=256),
    discriminator=DiscriminatorConfig(base=16_384, most=256),
    stage=GANStageConfig(steps=100_000, batch=32, ema=0.9989),
)
_PAPER = StyleGANVConfig(synthesis=SynthesisConfig(clamp=256.0), discriminator=DiscriminatorConfig(clamp=256.0))
SIZES = {"tiny": _TINY, "small": _SMALL, "base": _BASE, "paper": _PAPER}
"""tiny: tests. small: one CPU. base: one GPU at 128 pixels. paper: FaceForensics and others at 256 pixels."""


def as_mocogan(config: StyleGANVConfig) -> StyleGANVConfig:
    """MoCoGAN-SG2 of the same widths: 16 consecutive frames, an LSTM beside the styles, two discriminators."""
    return replace(
        config,
        frames=16,
        sampling="consecutive",
        horizon=32,
        motion=replace(config.motion, codes="lstm", into="styles", spacing=1.0),
        discriminator=replace(config.discriminator, kind="image+video"),
        stage=replace(config.stage, batch=max(1, config.stage.batch // 4)),
    )


MOCOGAN_SIZES = {name: as_mocogan(config) for name, config in SIZES.items()}
"""The same sizes for MoCoGAN-SG2; a quarter of the videos an update, each of 16 frames."""
