"""Configurations of the recall family and their named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from longtake.config import check_range
from longtake.systems.recall.encoder import EncoderConfig
from longtake.systems.recall.generator import GeneratorConfig
from longtake.systems.recall.latents import CLIP
from longtake.systems.training import TransformerStageConfig


@dataclass(frozen=True)
class StageConfig:
    """How encoder, generator and discriminators are trained (section 3.4.2).

    The thesis gives no weights. Those of 1 are the literal reading, under which the Kullback-Leibler terms, sums
    over all latent dimensions, outweigh a mean over pixels, so that codes may end up saying nothing of the clip;
    the smaller sizes weigh the reconstruction 10 and the others 0.001.
    """

    steps: int = 100_000
    """Updates."""
    batch: int = 10
    """Clips (or pairs of clips) an update and process."""
    lr: float = 2e-4
    """Learning rate of every Adam optimiser."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Their decay rates."""
    decay: bool = False
    """Let the learning rate fall to a tenth along a cosine."""
    reconstruction_weight: float = 1.0
    """Weight of the reconstruction terms, means over pixels in [-1, 1]."""
    kl_weight: float = 1.0
    """Weight of the Kullback-Leibler terms, sums over latent dimensions."""
    kl_warmup: int = 0
    """Updates over which their weight rises from 0."""
    clip: float | None = None
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the thesis has none."""

    def __post_init__(self):
        check_range(self, "batch", 1)
        check_range(self, "betas ema", 0, 1)


@dataclass(frozen=True)
class ClipGANConfig:
    """What every member of the family has."""

    size: tuple[int, int] = (64, 64)
    """(height, width) of a frame."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The two-stream encoder."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The three-stream generator."""
    critics: int = 64
    """Width of both discriminators."""
    stage: StageConfig = StageConfig()
    """Their training."""

    def __post_init__(self):
        check_range(self, "size critics", 1)


@dataclass(frozen=True)
class EncGAN3Config(ClipGANConfig):
    """EncGAN3 (chapter 3)."""

    encode: bool = True
    """Whether there is an encoder; without it this is G3AN."""
    sampling: Literal["step", "bins"] = "step"
    """Frames of a training clip: a random step for the clip ("step", adopted), or one random frame of each of 16
    equal bins of the video ("bins")."""
    step: tuple[int, int] = (1, 3)
    """Least and greatest step."""
    encoder_target: Literal["frames", "motion"] = "frames"
    """What the encoder's reconstruction term compares: all frames (Eq. 3.1), or the first frame and the difference
    maps (L_Enc,v, Eq. 3.9)."""
    generator_target: Literal["frames", "motion"] = "frames"
    """The same for the generator (Eq. 3.4, or L_G,v of Eq. 3.10)."""


@dataclass(frozen=True)
class LEncGANConfig(ClipGANConfig):
    """LEncGAN (section 4.2): LSTMs in the encoder, whose state goes on from clip to clip."""

    lstm: int = 512
    """Width of both LSTMs and of what they read."""
    clips: int = 8
    """Successive clips of a video that are learned in a row."""
    inherit: Literal["none", "cell", "output"] = "cell"
    """With what a clip starts: nothing, hidden and cell state of the clip before (Algorithm 4), or its output
    alone."""
    inherit_at: Literal["middle", "end"] = "end"
    """Whether that is the state after frame 7 (section 4.5.2) or after the last (Algorithm 4)."""
    reference: Literal["first", "middle", "none"] = "middle"
    """The frame that is reconstructed once more by a term of its own (Fig. 4.4)."""

    def __post_init__(self):
        super().__post_init__()
        check_range(self, "lstm clips", 1)


@dataclass(frozen=True)
class Terms:
    """Which terms a variant of R2's loss has (section 4.5.3)."""

    joint: bool
    """One update of encoder and generator together, not one of each."""
    noise: bool
    """The generator also makes clips of noise, which the discriminators see."""
    reference: bool
    """Reconstruction of the reference frame."""
    clips: bool
    """Reconstruction of both clips."""
    stitched: bool
    """Reconstruction of the stitched clip."""


LOSSES = {
    "v1": Terms(joint=False, noise=True, reference=True, clips=True, stitched=True),
    "v2": Terms(joint=False, noise=True, reference=True, clips=True, stitched=False),
    "v3": Terms(joint=False, noise=True, reference=True, clips=False, stitched=False),
    "v4": Terms(joint=True, noise=False, reference=True, clips=True, stitched=False),
    "v5": Terms(joint=False, noise=True, reference=False, clips=False, stitched=False),
}
"""Tab. 4.3. The thesis says of v5 only that it updates encoder and generator apart: read here as v3 without its
last reconstruction term, which goes on where v1 to v3 lead."""


@dataclass(frozen=True)
class R2Config(ClipGANConfig):
    """REncGAN (section 4.4) and improved R2 (section 5.2)."""

    r_enc: bool = True
    """R_Enc: clips overlap, and content is read off the reference frame, where the next clip begins. Without it
    clips follow each other and content is read off the first frame."""
    overlap: int = 8
    """Frames that neighbouring clips share (T_o), with R_Enc."""
    r_3vd: bool = True
    """R_3VD: the video discriminator also judges a clip stitched of both."""
    loss: Literal["v1", "v2", "v3", "v4", "v5"] = "v4"
    """Variant of the loss (Tab. 4.3)."""
    noise: bool = False
    """Clips of noise beside v4's (Tab. 5.7); the other variants always have them."""

    @property
    def stride(self) -> int:
        """Frames from the beginning of a clip to that of the next (r = 16 - T_o)."""
        return CLIP - self.overlap if self.r_enc else CLIP

    @property
    def reference(self) -> int:
        """The frame that content is read off, in its clip."""
        return self.stride if self.r_enc else 0

    @property
    def terms(self) -> Terms:
        """The loss's terms."""
        terms = LOSSES[self.loss]
        return replace(terms, noise=terms.noise or self.noise)

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.overlap < CLIP:
            raise ValueError(f"overlap is {self.overlap}; clips of {CLIP} frames share 1 to {CLIP - 1} of them")


@dataclass(frozen=True)
class AR2Config(ClipGANConfig):
    """AR2 (section 5.3): the next clip is predicted."""

    beta: float = 1.0
    """Error below which Smooth L1 is a square; the thesis is silent, this is PyTorch's. Pixels in [-1, 1] mostly
    err less, so `stage.reconstruction_weight` has to be raised 5 to 10 times to pull like L1."""


@dataclass(frozen=True)
class PlannerConfig:
    """The GPT over latent spaces; the defaults are the published ones, 1.36 billion parameters."""

    layers: int = 48
    """Blocks."""
    heads: int = 24
    """Attention heads."""
    width: int | None = None
    """Width of the residual stream; None: that of a token, which then needs no embedding (section 5.4.2)."""
    dropout: float = 0.1
    """Dropout probability while training."""
    frames: int = 1000
    """Longest sequence, in frames; what a video has beyond is not seen (section 5.4.4)."""
    format: Literal["zeros", "sequence", "mixed"] = "zeros"
    """What follows a short sequence: zeros that no loss sees (Eq. 5.5), a sequence of another video of its class
    (Eq. 5.6), or the same with class and lengths as discrete tokens (Eq. 5.7 and 5.8)."""

    @property
    def tokens(self) -> int:
        """Latent spaces of the longest sequence: clips of 16 frames every 8 frames."""
        return self.frames // 8 - 1

    def __post_init__(self):
        check_range(self, "layers heads width", 1)
        check_range(self, "dropout", 0, 1)
        if self.tokens < 2:
            raise ValueError(f"frames is {self.frames}, which holds {max(0, self.tokens)} clips; a plan needs 2")


@dataclass(frozen=True)
class PlannerStageConfig(TransformerStageConfig):
    """How the planner is trained (section 5.4.4)."""

    steps: int = 5000
    batch: int = 30
    lr: float = 5e-5
    weight_decay: float = 0.1
    """Of the matrices; the thesis is silent."""
    stride: int | None = None
    """Frames between the sequences that a long video gives; None: one a video, from its start (the thesis)."""


@dataclass(frozen=True)
class R3Config(R2Config):
    """R3 (section 5.4): improved R2, and a GPT that plans its latent spaces."""

    planner: PlannerConfig = PlannerConfig()
    """The GPT."""
    planner_stage: PlannerStageConfig = PlannerStageConfig()
    """Its training, after R2's."""

    def __post_init__(self):
        super().__post_init__()
        if self.stride != 8:
            raise ValueError("R3 plans clips that begin every 8 frames; leave r_enc and overlap as they are")


Latent = Literal["sample", "mean"]


@dataclass(frozen=True)
class EncGAN3Settings:
    """What can be chosen when EncGAN3 or LEncGAN generates."""

    latent: Latent = "sample"
    """Codes from an encoded clip: drawn from its latent space, or its mean."""


@dataclass(frozen=True)
class R2Settings:
    """What can be chosen when R2 generates."""

    latent: Latent = "sample"
    """Codes drawn from the latent spaces, or their means, of which there is one only: no candidates then."""
    candidates: int = 1
    """Clips from each latent space, of which the video discriminator chooses one (VDrej; the thesis: 20)."""

    def __post_init__(self):
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates} but must be at least 1")


@dataclass(frozen=True)
class ImprovedR2Settings(R2Settings):
    """What can be chosen when improved R2 or AR2 generates."""

    candidates: int = 20
    """Clips from each latent space, of which the video discriminator chooses one (VDrej; Algorithm 8 says 10, text
    and ablations 20)."""


@dataclass(frozen=True)
class R3Settings(ImprovedR2Settings):
    """What can be chosen when R3 generates."""

    rollout: Literal["robust", "faster"] = "robust"
    """Go on from the latent space of the chosen clip ("robust", Algorithm 11), or plan first and decode then."""


_LEARNS = StageConfig(reconstruction_weight=10.0, kl_weight=1e-3)
_ENCODER = {
    "tiny": EncoderConfig(4, 16, 8, 8, "layer"),
    "small": EncoderConfig(8, 256, 96, 128, "layer"),
    "base": EncoderConfig(norm="layer"),
}
_TINY_STAGE = replace(_LEARNS, steps=20, batch=2, lr=1e-3)
_SMALL_STAGE = replace(_LEARNS, steps=6000, batch=2, decay=True, ema=0.998, kl_warmup=500)
_BASE_STAGE = replace(_LEARNS, batch=16, ema=0.999, kl_warmup=10_000)
_TINY = ClipGANConfig((16, 16), _ENCODER["tiny"], GeneratorConfig(8, 4, 4, 3, attention=2), 4, _TINY_STAGE)
_SMALL = ClipGANConfig((48, 48), _ENCODER["small"], GeneratorConfig(64, 32, 20, attention=3), 24, _SMALL_STAGE)
_BASE = ClipGANConfig((128, 128), _ENCODER["base"], GeneratorConfig(256, 128, 32, 6), 32, _BASE_STAGE)
_SMALL_3D = replace(_SMALL, generator=replace(_SMALL.generator, width=16, video="3d"))
_BASE_3D = replace(_BASE, generator=replace(_BASE.generator, video="3d"))
_PAPER_128 = ClipGANConfig(
    (128, 128), generator=GeneratorConfig(512, 256, blocks=6), stage=StageConfig(steps=48_000, batch=25)
)
_PAPER_3D = replace(_PAPER_128, generator=replace(_PAPER_128.generator, video="3d"))


def _as(cls: type, base: ClipGANConfig, **more):
    """A member's configuration from what all have."""
    return cls(**vars(base), **more)


ENCGAN3_SIZES = {
    "tiny": _as(EncGAN3Config, _TINY),
    "small": _as(EncGAN3Config, _SMALL, step=(1, 1)),
    "base": _as(EncGAN3Config, _BASE, step=(1, 1)),
    "paper": EncGAN3Config(stage=StageConfig(steps=370_000)),
}
LENCGAN_SIZES = {
    "tiny": _as(LEncGANConfig, _TINY, lstm=16, clips=2),
    "small": _as(LEncGANConfig, _SMALL, lstm=128),
    "base": _as(LEncGANConfig, _BASE),
    "paper": LEncGANConfig(stage=StageConfig(batch=1)),
}
R2_SIZES = {
    "tiny": _as(R2Config, _TINY),
    "small": _as(R2Config, _SMALL),
    "base": _as(R2Config, _BASE),
    "paper": _as(R2Config, _PAPER_128),
}
IMPROVED_R2_SIZES = {
    "tiny": _as(R2Config, replace(_TINY, generator=replace(_TINY.generator, video="3d"))),
    "small": _as(R2Config, _SMALL_3D),
    "base": _as(R2Config, _BASE_3D),
    "paper": _as(R2Config, _PAPER_3D),
}
AR2_SIZES = {
    "tiny": _as(AR2Config, replace(_TINY, stage=replace(_TINY_STAGE, reconstruction_weight=50.0))),
    "small": _as(AR2Config, replace(_SMALL_3D, stage=replace(_SMALL_STAGE, reconstruction_weight=50.0))),
    "base": _as(AR2Config, replace(_BASE_3D, stage=replace(_BASE_STAGE, reconstruction_weight=50.0))),
    "paper": _as(AR2Config, replace(_PAPER_3D, stage=StageConfig(steps=20_000, batch=10))),
}
R3_SIZES = {
    "tiny": R3Config(
        **vars(IMPROVED_R2_SIZES["tiny"]),
        planner=PlannerConfig(2, 2, frames=40),
        planner_stage=PlannerStageConfig(steps=20, batch=2, lr=1e-3, stride=8),
    ),
    "small": R3Config(
        **vars(IMPROVED_R2_SIZES["small"]),
        planner=PlannerConfig(4, 4, frames=264),
        planner_stage=PlannerStageConfig(
            3000, 16, 5e-4, stride=128, warmup=200, decay=True, clip=1.0, ema=0.998, keep_best=True
        ),
    ),
    "base": R3Config(
        **vars(IMPROVED_R2_SIZES["base"]),
        planner=PlannerConfig(12, 12),
        planner_stage=PlannerStageConfig(50_000, 16, 1e-4, stride=256, warmup=1000, clip=1.0),
    ),
    "paper": R3Config(**vars(IMPROVED_R2_SIZES["paper"])),
}
"""tiny: tests. small: 48 pixels, about a second an update on one CPU thread. base: one GPU at 128 pixels. paper: as
published, with the literal weights; EncGAN3 and LEncGAN at 64 pixels, the others at 128."""
