"""Configuration of TATS and its named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from longtake.config import check_range
from longtake.nn.conv import Padding
from longtake.nn.discriminators import DiscriminatorConfig
from longtake.rollout.sampling import SamplingSettings
from longtake.systems.tats.vqgan import VQGANConfig
from longtake.systems.training import TransformerStageConfig


@dataclass(frozen=True)
class TextConfig:
    """How captions become the tokens before the video's (paper section 2.3)."""

    length: int = 32
    """Ids of a text, marks of start and end among them."""
    vocabulary: int = 2000
    """Most pieces of a tokenizer that is trained on the library's captions."""
    tokenizer: str | None = None
    """A tokenizer.json of your own, such as CLIP's, instead."""

    def __post_init__(self):
        if self.length < 3:
            raise ValueError(f"a text of {self.length} tokens holds no word; give 3 or more")


@dataclass(frozen=True)
class TransformerSize:
    """Sizes of either transformer; the defaults are the published ones."""

    layers: int = 24
    """Blocks; 0 for the prior: no prior at all, a tokenizer that reconstructs."""
    heads: int = 16
    """Attention heads."""
    width: int = 1024
    """Width of the residual stream."""
    dropout: float = 0.0
    """Dropout probability while training."""
    block: int | None = None
    """Positions of the transformer; None: as many as its clips and their condition have tokens."""

    def __post_init__(self):
        check_range(self, "heads width", 1)
        check_range(self, "dropout", 0, 1)
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")


@dataclass(frozen=True)
class PriorConfig(TransformerSize):
    """The autoregressive transformer over tokens."""

    condition: Literal["none", "label", "text", "audio"] = "none"
    """What stands before the video tokens: a start token, the class of the clip, its caption, or its sound."""
    text: TextConfig = TextConfig()
    """How captions become tokens."""
    shared_start: bool = False
    """Official quirk: the start token shares the embedding of video code 0 instead of having one of its own."""
    crop: tuple[int, int] | None = None
    """See only (height, width) tokens of a slice at once and be told which (the authors' `vtokens_pos`): for frames
    whose tokens are too many for one window. Training takes crops at random places, a rollout lays them side by
    side, overlapping by half. None: whole slices."""


@dataclass(frozen=True)
class VQGANStageConfig:
    """How the VQGAN is trained (paper section 2.1; values of the released training command)."""

    steps: int = 2_000_000
    """Updates."""
    batch: int = 96
    """Clips an update and process: in the released command 8 processes have 2 each and accumulate 6 times."""
    lr: float = 9e-5
    """Learning rate of both Adam optimisers; a smaller batch wants a smaller one (1.5e-5 at 16)."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Their decay rates."""
    warmup: int = 0
    """Updates over which the learning rate rises from 0."""
    decay: bool = False
    """Let the learning rate fall to a tenth along a cosine."""
    l1_weight: float = 4.0
    """Weight of the mean absolute error, in the [-0.5, 0.5] range of the official code."""
    l2_weight: float = 0.0
    """Weight of the mean squared error in the same range (the paper has none). The mean absolute error pulls as
    hard on every pixel of a ground that is almost right as on a sprite that is missing."""
    perceptual_weight: float = 4.0
    """Weight of the perceptual distance of one random frame a clip; needs `perceptual`."""
    perceptual: str | None = None
    """File or folder with VGG-16 and LPIPS weights that you bring, or a classifier (a model folder or a bundled
    name); None leaves the perceptual loss out."""
    gan_weight: tuple[float, float] = (1.0, 1.0)
    """Weights of the image and the video discriminator."""
    gan_loss: Literal["hinge", "vanilla"] = "hinge"
    """Form of the discriminator loss."""
    feature_weight: float = 4.0
    """Weight of feature matching in both discriminators."""
    quantise_start: int = 0
    """Updates of plain autoencoding before the codebook is drawn from the encoder's vectors (the paper has none).
    Small models collapse onto a handful of codes when they start quantised."""
    discriminator_start: int = 10_000
    """Update from which the discriminators learn and count."""
    clip: float | None = 1.0
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the paper has none."""


@dataclass(frozen=True)
class PriorStageConfig(TransformerStageConfig):
    """How the prior is trained."""

    steps: int = 500_000
    batch: int = 24
    """Clips an update and process; sparse priors: 32, with a learning rate of 1.44e-4."""
    lr: float = 1.08e-4


@dataclass(frozen=True)
class SoundConfig:
    """The VQGAN of spectrograms (paper section 3.4), for a prior conditioned on sound.

    It is trained without critics, as the authors say; their released trainer reads the wrong tensor."""

    vqgan: VQGANConfig = field(default_factory=lambda: VQGANConfig(codes=1024, compression=(4, 8, 8), channels=1))
    """Its networks: patches of 64x16 numbers a frame become 8x2 tokens every fourth frame."""
    steps: int = 100_000
    """Updates."""
    batch: int = 6
    """Clips an update and process."""
    lr: float = 9e-5
    """Learning rate of Adam (betas 0.5, 0.9)."""
    l1_weight: float = 4.0
    """Weight of the mean absolute error, in [-0.5, 0.5]."""
    clip: float | None = 1.0
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the paper has none."""


@dataclass(frozen=True)
class InterpolatorConfig(TransformerSize):
    """The transformer that fills the latent slices between two of a sparse prior (paper section 2.3)."""

    stage: PriorStageConfig = PriorStageConfig()
    """How it is trained."""


@dataclass(frozen=True)
class TATSConfig:
    """A time-agnostic VQGAN and an autoregressive prior; TATS-hierarchical if the prior is sparse."""

    frames: int = 16
    """Frames of a training clip."""
    size: tuple[int, int] = (128, 128)
    """(height, width) of a frame."""
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    """The tokenizer."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Its two critics."""
    prior: PriorConfig = PriorConfig()
    """The transformer."""
    vqgan_stage: VQGANStageConfig = VQGANStageConfig()
    """First stage."""
    prior_stage: PriorStageConfig = PriorStageConfig()
    """Second stage."""
    every: int = 1
    """The prior predicts every so many-th latent slice, and the interpolator those between: TATS-base with 1,
    TATS-hierarchical with 4. A window of the prior then spans `every` times `frames`."""
    interpolator: InterpolatorConfig = InterpolatorConfig()
    """The second transformer of TATS-hierarchical."""
    sound: SoundConfig = field(default_factory=SoundConfig)
    """The tokenizer of sound, where the prior is conditioned on it."""
    decode_window: int | None = None
    """Latent slices that the decoder sees at once in a long video; None: twice its receptive field."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a clip."""
        t, h, w = self.vqgan.compression
        return self.frames // t, self.size[0] // h, self.size[1] // w

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every is {self.every} but must be at least 1")


@dataclass(frozen=True)
class TATSSettings:
    """What can be chosen at generation time."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 2048
    """Tokens to choose from, the most likely ones; 0 means all."""
    top_p: float = 0.92
    """Share of the probability to choose from; 1 means all."""
    keep: int | None = None
    """Latent slices of the past that a window starts with (p); None: all but one, as in the paper's section 2.1."""
    new: int = 1
    """Latent slices a window adds."""
    first_top_k: int | None = None
    """Tokens to choose from in the first window; None: as `top_k`."""
    first_top_p: float | None = None
    """Share of the probability in the first window; None: as `top_p`."""
    official_quirk: bool = False
    """Interpolate as the released sampler does, against the training mask (see docs/systems/tats.md)."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the prior's arithmetic; int8 is for CPUs only."""
    compile: bool = False
    """Compile the prior's single-token step first (not with int8)."""

    def __post_init__(self):
        self.sampling(first=True)
        self.sampling(first=False)

    def sampling(self, first: bool) -> SamplingSettings:
        """How tokens are chosen, in the first window or later.

        Raises ValueError if they cannot be.
        """
        top_k = self.first_top_k if first and self.first_top_k is not None else self.top_k
        top_p = self.first_top_p if first and self.first_top_p is not None else self.top_p
        return SamplingSettings(self.temperature, top_k, top_p)


_REPLICATED_TIME = Padding(time="replicate", space="zeros")

SIZES = {
    "tiny": TATSConfig(
        frames=8,
        size=(16, 16),
        vqgan=VQGANConfig(hidden=4, embedding=16, codes=32, compression=(4, 4, 4), norm="group"),
        discriminator=DiscriminatorConfig(width=4, layers=1),
        prior=PriorConfig(layers=2, heads=2, width=32),
        vqgan_stage=VQGANStageConfig(steps=20, batch=4, lr=1e-3, discriminator_start=5),
        prior_stage=PriorStageConfig(steps=20, batch=4, lr=1e-3),
        interpolator=InterpolatorConfig(2, 2, 32, stage=PriorStageConfig(steps=20, batch=4, lr=1e-3)),
        sound=SoundConfig(
            VQGANConfig(hidden=2, embedding=8, codes=16, compression=(4, 8, 8), channels=1, norm="group"),
            steps=20,
            batch=4,
            lr=1e-3,
        ),
    ),
    "small": TATSConfig(
        size=(64, 64),
        vqgan=VQGANConfig(
            hidden=8, embedding=64, codes=1024, norm="frame", groups=4, padding=_REPLICATED_TIME, restart=0.5
        ),
        discriminator=DiscriminatorConfig(width=16, layers=2),
        prior=PriorConfig(layers=6, heads=4, width=224, condition="label"),
        vqgan_stage=VQGANStageConfig(
            steps=8000, batch=8, lr=4e-4, warmup=100, decay=True, discriminator_start=3000, ema=0.999
        ),
        prior_stage=PriorStageConfig(steps=6000, batch=32, lr=1e-3, warmup=200, decay=True, clip=1.0, ema=0.999),
    ),
    "base": TATSConfig(
        vqgan=VQGANConfig(hidden=16, embedding=128, codes=4096, restart=0.5),
        discriminator=DiscriminatorConfig(width=32),
        prior=PriorConfig(layers=12, heads=8, width=512),
        vqgan_stage=VQGANStageConfig(steps=100_000, batch=16, lr=1e-4),
        prior_stage=PriorStageConfig(steps=100_000, batch=32, lr=3e-4, warmup=1000, clip=1.0),
    ),
    "paper": TATSConfig(),
}
"""tiny: tests. small: the bundled model's (about 60 GFLOP a clip and update at most). base: one GPU at 128 pixels.
paper: the published configuration (sky and tai-chi, 128 pixels)."""
