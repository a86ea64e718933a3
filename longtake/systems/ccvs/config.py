"""Configuration of CCVS and its named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from longtake.config import check_range
from longtake.rollout.sampling import SamplingSettings
from longtake.systems.ccvs.augmentation import AugmentationConfig
from longtake.systems.ccvs.autoencoder import AutoencoderConfig
from longtake.systems.ccvs.transformer import Positions
from longtake.systems.training import TransformerStageConfig


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminators of frames and of short clips."""

    width: int = 64
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    """Channels at each level, in multiples of `width`; the last repeats."""

    def __post_init__(self):
        check_range(self, "width multipliers", 1)


@dataclass(frozen=True)
class AutoencoderStageConfig:
    """How the autoencoder is trained (paper section 3.2; weights of the released scripts)."""

    steps: int = 200_000
    """Updates, each of an image part and (see `video_every`) a video part; 0 if it comes from another model."""
    image_batch: int = 32
    """Pairs of frames in the image part; three images each pass the encoder."""
    video_batch: int = 16
    """Clips in the video part."""
    video_every: int = 1
    """The video part comes with every so many-th update."""
    frames: int = 4
    """Frames of a clip, the first of which is given."""
    span: int = 30
    """Longest stretch of a video, in frames, from which a pair or a clip is drawn."""
    lr: float = 0.002
    """Learning rate of Adam (the released scripts'; the paper's text says 0.02)."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Its decay rates."""
    warmup: int = 0
    """Updates over which the learning rate rises from 0."""
    decay: bool = False
    """Let the learning rate fall to a tenth along a cosine."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error, in [-1, 1] (equation 4)."""
    l2_weight: float = 0.0
    """Weight of the mean squared error in the same range (the paper has none). The mean absolute error pulls as
    hard on every pixel of a ground that is almost right as on a sprite that is missing."""
    perceptual_weight: float = 10.0
    """Weight of the distance of features (equation 4); needs `perceptual`."""
    perceptual: str | None = None
    """Where the features come from: torchvision's VGG-19 weights or LPIPS weights that you bring, or a classifier
    (a model folder or a bundled name); None leaves the term out."""
    quantiser_weight: float = 1.0
    """Weight of the codebook's loss (equation 3)."""
    context_start: int = 0
    """Updates in which frames are decoded from their codes alone, before context, flow and fusion are trained (the
    paper has none). They are cheap, and small models learn little from codes while there is something to copy."""
    quantise_start: int = 0
    """Updates of plain autoencoding before a codebook of moving averages is drawn from the encoder's vectors (the
    paper has none). Small models that start quantised encode little more than their first few codes can say."""
    gan_weight: float = 1.0
    """Weight of the adversarial losses (equation 6) of both discriminators; 0 leaves both out."""
    gan_start: int = 0
    """Update from which the discriminators learn and count (the paper has none)."""
    flow_weight: float = 1.0
    """Weight of the self-supervision of flow and mask (equation 7)."""
    r1: float = 10.0
    """Weight of the penalty on the discriminators' slope at real examples."""
    r1_every: int = 16
    """Updates from one such penalty to the next."""
    unconditional: bool = False
    """Also learn to decode without context: for videos that begin with no given frame."""
    end_share: float = 0.0
    """Share of the video parts whose decoder also sees the clip's last real frame, as it does towards an end."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """The distorted views that serve as context of the image part."""
    official_mask: bool = False
    """Official quirk: the mask is only taught to be 1 where the context is occluded, never to be 0 elsewhere."""
    clip: float | None = None
    """Largest gradient norm."""
    ema: float | None = 0.999
    """Decay of the averaged weights, applied after the image and after the video part."""

    def __post_init__(self):
        check_range(self, "image_batch video_batch video_every r1_every", 1)
        check_range(self, "betas ema end_share", 0, 1)
        if self.frames < 2 or self.span < self.frames:
            raise ValueError(f"clips of {self.frames} frames need 2 or more, and a span of at least as many")
        if self.end_share and self.frames < 3:
            raise ValueError(f"clips of {self.frames} frames have none between first and last; end_share needs 3")
        if self.steps and max(self.context_start, self.quantise_start) >= self.steps:
            raise ValueError(f"context_start and quantise_start must be below steps, {self.steps}; lower them")


@dataclass(frozen=True)
class PriorConfig:
    """The transformer and what annotates its frames."""

    layers: int = 24
    """Blocks; 0: no transformer, a model that reconstructs."""
    heads: int = 16
    """Attention heads."""
    width: int = 1024
    """Width of the residual stream."""
    dropout: float = 0.0
    """Dropout probability while training."""
    positions: Positions = "temporal"
    """Embeddings of places: one a place in the frame and one a frame ("temporal"), rows, columns and frames apart,
    or "none": one a token of the window."""
    label: bool = False
    """Whether the class of a clip begins its sequence."""
    start: bool = False
    """Whether a start token does, so that videos can begin with no given frame."""
    end_share: float = 0.0
    """Share of the training steps whose clips end at a frame that is shown first; 0: no end frames. With 1 a window
    without end frame has never been seen, and a video is no longer than a window."""
    end_distance: int = 1
    """Least distance, in frames, of an end frame from the first; the released models know one only, the 15 frames
    of a window. A video with an end frame is no shorter."""
    annotation: Literal["none", "states", "audio"] = "none"
    """What stands before the codes of each frame."""

    def __post_init__(self):
        check_range(self, "heads width", 1)
        check_range(self, "dropout end_share", 0, 1)
        if self.layers and self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")


@dataclass(frozen=True)
class PriorStageConfig(TransformerStageConfig):
    """How the transformer is trained."""

    steps: int = 200_000
    batch: int = 16
    lr: float = 1e-5
    annotation_weight: float = 1.0
    """Weight of the mean loss of states or sound beside that of codes. 1 as released: a frame's 2 states weigh as
    much as its 64 codes. In equation 8 all tokens weigh the same, which is states a frame / codes a frame."""

    def __post_init__(self):
        check_range(self, "annotation_weight", 0)


@dataclass(frozen=True)
class StatesConfig:
    """States as tokens, and the estimator for videos that come without them (paper section 4)."""

    codes: int = 128
    """Values that a number of a state can take."""
    names: tuple[str, ...] | None = None
    """Which numbers of the library's states; None: all."""
    estimated: bool = False
    """Estimate the states from frames instead of reading the library's: the stage `states` learns to, on a library
    that has them, and the transformer may then be trained on one that has none."""
    hidden: int = 128
    """Channels of the estimator."""
    steps: int = 10_000
    """Updates of the estimator."""
    batch: int = 64
    """Frames an update and process."""
    lr: float = 0.01
    """Learning rate of Adam (betas 0.5, 0.9)."""

    def __post_init__(self):
        check_range(self, "codes hidden batch", 1)
        if self.names is not None and len(set(self.names)) < max(1, len(self.names)):
            raise ValueError(f"names are {', '.join(self.names) or 'none'} but must be one or more different ones")


@dataclass(frozen=True)
class SoundConfig:
    """The autoencoder of spectrogram patches (released code)."""

    codes: int = 1024
    """Entries of its codebook."""
    latent: int = 512
    """Width of its latents."""
    hidden: int = 512
    """Channels of its layers."""
    steps: int = 100_000
    """Updates."""
    batch: int = 64
    """Clips an update and process."""
    lr: float = 0.002
    """Learning rate of Adam (betas 0, 0.99)."""
    ema: float | None = None
    """Decay of averaged weights; the paper has none."""

    def __post_init__(self):
        check_range(self, "codes latent hidden batch", 1)
        check_range(self, "ema", 0, 1)


@dataclass(frozen=True)
class CCVSConfig:
    """A context-aware autoencoder and an annotated transformer over its codes."""

    frames: int = 16
    """Frames of the transformer's window, an end frame included."""
    size: tuple[int, int] = (256, 256)
    """(height, width) of a frame."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Encoder, codebook, decoder and flow module."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Its two critics."""
    autoencoder_stage: AutoencoderStageConfig = field(default_factory=AutoencoderStageConfig)
    """First stage."""
    states: StatesConfig = StatesConfig()
    """Where frames are annotated by states."""
    sound: SoundConfig = SoundConfig()
    """Where frames are annotated by sound."""
    prior: PriorConfig = PriorConfig()
    """The transformer."""
    prior_stage: PriorStageConfig = PriorStageConfig()
    """Last stage."""

    @property
    def grid(self) -> tuple[int, int]:
        """Codes (h, w) of a frame."""
        factor = self.autoencoder.compression
        return self.size[0] // factor, self.size[1] // factor

    def __post_init__(self):
        check_range(self, "size", 1)
        factor = self.autoencoder.compression
        if self.size[0] % factor or self.size[1] % factor:
            raise ValueError(
                f"frames of {self.size[0]}x{self.size[1]} do not divide by {factor}, the compression of "
                f"{len(self.autoencoder.multipliers)} levels; choose multiples of it"
            )
        if self.frames < 2:
            raise ValueError(f"a window of {self.frames} frames leaves nothing to predict; give 2 or more")
        if not 1 <= self.prior.end_distance < self.frames:
            raise ValueError(
                f"end_distance is {self.prior.end_distance} but must lie between 1 and {self.frames - 1}, the last "
                "frame of a window"
            )
        if self.autoencoder.quantiser == "none" and self.prior.annotation != "none":
            raise ValueError('quantiser "none" regresses latents and takes no annotation; use annotation: none')


@dataclass(frozen=True)
class CCVSSettings:
    """What can be chosen at generation time."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 100
    """Codes of a frame to choose from, the most likely ones; 0 means all, 1 the most likely alone."""
    state_top_k: int = 10
    """Tokens to choose from where states or sound are not given but predicted (paper Table 2)."""
    new: int = 1
    """Frames that a full window drops and adds; more is faster, and each then knows less of the past."""
    context: int | None = None
    """Most frames that a new one is decoded from; None: as many as the model was made for, 0: none."""
    keep_first: int = 0
    """So many of these are the video's first ones for good (8 in the released AudioSet-Drums scripts)."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the transformer's arithmetic; int8 is for CPUs only."""
    compile: bool = False
    """Compile the transformer's single-token step first (not with int8)."""

    def __post_init__(self):
        self.sampling(self.top_k)
        self.sampling(self.state_top_k)

    def sampling(self, top_k: int) -> SamplingSettings:
        """How a token is chosen among the `top_k` likeliest; raises ValueError if it cannot be."""
        return SamplingSettings(self.temperature, top_k, top_p=1.0)


_TINY = CCVSConfig(
    frames=6,
    size=(16, 16),
    autoencoder=AutoencoderConfig(8, (1, 2, 2), 16, codes=24, context=3, flow_widths=(8, 8, 8)),
    discriminator=DiscriminatorConfig(4, (1, 2)),
    autoencoder_stage=AutoencoderStageConfig(
        steps=20,
        image_batch=4,
        video_batch=2,
        span=8,
        r1_every=4,
        unconditional=True,
        augmentation=AugmentationConfig(alpha=1.0),
        ema=0.9,
    ),
    states=StatesConfig(codes=16, hidden=8, steps=20, batch=4),
    sound=SoundConfig(16, 8, 8, steps=20, batch=2),
    prior=PriorConfig(2, 2, 32, start=True),
    prior_stage=PriorStageConfig(steps=20, batch=4, lr=1e-3),
)

SIZES = {
    "tiny": _TINY,
    "small": CCVSConfig(
        size=(48, 48),
        autoencoder=AutoencoderConfig(32, (1, 1, 2, 2), 64, "average", 1024, flow_widths=(32, 16, 16)),
        discriminator=DiscriminatorConfig(8, (1, 1, 2, 2)),
        autoencoder_stage=AutoencoderStageConfig(
            steps=6000,
            image_batch=4,
            video_batch=2,
            lr=0.005,
            betas=(0.9, 0.99),
            l1_weight=5.0,  # or flow and mask outweigh it; much more, and no flow is learned
            l2_weight=20.0,
            perceptual_weight=30.0,  # of features without heads, which are means over channels
            gan_weight=0.1,
            quantise_start=1500,
            context_start=4000,
            gan_start=5500,
            end_share=0.25,
            unconditional=True,
            augmentation=AugmentationConfig(alpha=1.0, blur=0.4),
            warmup=100,
            decay=True,
            ema=0.998,
        ),
        states=StatesConfig(names=("x", "y"), hidden=32, steps=1000),
        sound=SoundConfig(256, 64, 32, steps=2000, batch=8),
        prior=PriorConfig(4, 4, 192, label=True),
        prior_stage=PriorStageConfig(steps=4000, batch=4, lr=1e-3, warmup=200, decay=True, clip=1.0, ema=0.998),
    ),
    "base": CCVSConfig(
        size=(128, 128),
        autoencoder=AutoencoderConfig(64, (1, 1, 2, 2, 4), 256, flow_widths=(64, 32, 32)),
        discriminator=DiscriminatorConfig(32, (1, 1, 2, 2, 4)),
        autoencoder_stage=AutoencoderStageConfig(steps=100_000, image_batch=16, video_batch=8, unconditional=True),
        prior=PriorConfig(12, 8, 512, start=True),
        prior_stage=PriorStageConfig(steps=100_000, lr=3e-4, warmup=1000, clip=1.0),
    ),
    "paper": CCVSConfig(),
}
"""tiny: tests. small: Atari at 48 pixels on a CPU. base: one GPU at 128 pixels.
paper: BAIR at 256 pixels, prediction from first frames; docs/systems/ccvs.md says how the others differ."""
