"""Configuration of Loong and its named sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from longtake.config import check_range
from longtake.nn.discriminators import DiscriminatorConfig
from longtake.rollout.sampling import SamplingSettings
from longtake.systems.loong.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class TextConfig:
    """How texts become tokens."""

    length: int = 128
    """Most pieces of a text; a longer one is cut."""
    vocabulary: int = 32_000
    """Ids kept for text: most pieces of the tokenizer."""
    tokenizer: str | None = None
    """A tokenizer.json of your own; None: byte-pair encoding is trained on the library's captions."""

    def __post_init__(self):
        if self.length < 1 or self.vocabulary < 1:
            raise ValueError(
                f"text needs a length and a vocabulary of 1 or more, not {self.length}, {self.vocabulary}"
            )


@dataclass(frozen=True)
class LMConfig:
    """The language model over text and video tokens; the defaults are the 3B model of the ablations."""

    layers: int = 26
    """Blocks."""
    heads: int = 24
    """Attention heads."""
    width: int = 3072
    """Width of the residual stream."""
    dropout: float = 0.0
    """Dropout probability on both branches of a block while training."""
    recompute: bool = False
    """Activation checkpointing: less memory in training for a third more time."""
    condition: Literal["none", "label", "text"] = "text"
    """What stands before the video tokens: nothing, the name of the clip's class, or its caption."""
    text: TextConfig = TextConfig()
    """How texts become tokens."""

    def __post_init__(self):
        check_range(self, "heads width", 1)
        check_range(self, "dropout", 0, 1)
        if self.width % (2 * self.heads):
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads of even width")


@dataclass(frozen=True)
class TokenizerStageConfig:
    """How the tokenizer is trained: one stage for each of `lengths` (section 4.1: 400,000 updates of 64 in all)."""

    steps: tuple[int, ...] = (100_000, 150_000, 150_000)
    """Updates of each stage; a stage of 0 is left out."""
    batch: tuple[int, ...] = (64, 64, 64)
    """Clips an update and process in each stage; the first one's is that of pictures in every stage."""
    stills: float = 0.25
    """Share of updates on pictures in the stages of clips."""
    lr: float = 1e-4
    """Learning rate of both Adam optimisers (the paper does not say)."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Their decay rates."""
    warmup: int = 0
    """Updates over which the learning rate rises from 0."""
    decay: bool = False
    """Let the learning rate fall to a tenth along a cosine over all stages."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error."""
    l2_weight: float = 0.0
    """Weight of the mean squared error."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance of one random frame a clip; needs `perceptual`."""
    perceptual: str | None = None
    """File or folder with VGG-16 and LPIPS weights that you bring, or a classifier (a model folder or a bundled
    name); None leaves the perceptual loss out."""
    gan_weight: tuple[float, float] = (0.1, 0.1)
    """Weights of the critic of pictures and of the one of clips."""
    gan_loss: Literal["hinge", "vanilla"] = "hinge"
    """Form of the critics' loss."""
    discriminator_start: int = 20_000
    """Update, counted over all stages, from which the critics learn and count."""
    clip: float | None = 1.0
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the paper has none."""


@dataclass(frozen=True)
class LMStageConfig:
    """How the language model is trained: one stage for each of `lengths` (sections 3.2 and 4.1)."""

    steps: tuple[int, ...] = (200_000, 200_000, 100_000)
    """Updates of each stage; a stage of 0 is left out, (0, 0, n) is direct training on long clips."""
    batch: tuple[int, ...] = (512, 512, 256)
    """Clips an update and process in each stage; the first one's is that of pictures in every stage."""
    stills: float = 0.25
    """Share of updates on pictures in the stages of clips (the paper does not say)."""
    early_weight: float = 1.0
    """Additional weight of the tokens of the first `early` frames (lambda of equation 2)."""
    text_dropout: float = 0.1
    """Share of clips whose text is replaced by null tokens, for guidance (the paper does not say)."""
    lr: float = 1e-4
    """Learning rate of AdamW (betas 0.9, 0.95)."""
    weight_decay: float = 0.05
    """Of the matrices; norms and embeddings are spared."""
    warmup: int = 10_000
    """Updates over which the learning rate rises from 0, in every stage."""
    decay: bool = True
    """Let it fall to a tenth along a cosine, in every stage."""
    clip: float | None = 1.0
    """Largest gradient norm."""
    ema: float | None = None
    """Decay of averaged weights; the paper has none."""


@dataclass(frozen=True)
class LoongConfig:
    """A causal tokenizer of pictures and videos, and a language model over text and video tokens."""

    lengths: tuple[int, ...] = (1, 17, 65)
    """Frames of the clips of each training stage; the last is what the model makes at once."""
    early: int = 17
    """Frames whose tokens weigh more in training."""
    size: tuple[int, int] = (128, 128)
    """(height, width) of a frame."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The tokenizer."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Its critics."""
    lm: LMConfig = LMConfig()
    """The language model."""
    tokenizer_stage: TokenizerStageConfig = TokenizerStageConfig()
    """First stages."""
    lm_stage: LMStageConfig = LMStageConfig()
    """Further stages."""

    @property
    def frames(self) -> int:
        """Frames that the model makes at once."""
        return self.lengths[-1]

    def __post_init__(self):
        if list(self.lengths) != sorted(set(self.lengths)) or not self.lengths or self.lengths[-1] < 2:
            raise ValueError(f"lengths must rise and end with a clip, got {self.lengths}")
        for name in ("tokenizer_stage", "lm_stage"):
            for part in ("steps", "batch"):
                given = getattr(getattr(self, name), part)
                if len(given) != len(self.lengths):
                    raise ValueError(
                        f"{name}.{part} has {len(given)} numbers for the {len(self.lengths)} of lengths"
                    )


@dataclass(frozen=True)
class LoongSettings:
    """What can be chosen at generation time."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 50
    """Tokens to choose from, the most likely ones; 0 means all, 1 the most likely (section 3.3)."""
    top_p: float = 1.0
    """Share of the probability to choose from; 1 means all."""
    guidance_scale: float = 7.5
    """How far logits are pushed from those without text, before top-k; 1 is no guidance."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the language model's arithmetic; int8 is for CPUs only."""
    context: int = 5
    """Frames of the past that an extension starts with: 1 and then the tokenizer's 4 at a time."""
    extend: Literal["reencode", "raw", "grow"] = "reencode"
    """How a window goes on from the last: its last frames decoded and encoded again (the paper's way), its last
    tokens as they are, or the window as it is with positions that grow (for ablations)."""

    def __post_init__(self):
        self.sampling()

    def sampling(self) -> SamplingSettings:
        """How a token is chosen; raises ValueError if it cannot be."""
        return SamplingSettings(self.temperature, self.top_k, self.top_p)


SIZES = {
    "tiny": LoongConfig(
        lengths=(1, 5, 9),
        early=5,
        size=(16, 16),
        tokenizer=TokenizerConfig(
            width=4,
            multipliers=(1, 2, 2),
            blocks=1,
            embedding=8,
            codes=32,
            compression=(4, 4, 4),
            groups=2,
            similarity="distance",
        ),
        discriminator=DiscriminatorConfig(width=4, layers=1),
        lm=LMConfig(layers=2, heads=2, width=32, condition="none", text=TextConfig(16, 300)),
        tokenizer_stage=TokenizerStageConfig((20, 20, 20), (4, 4, 2), lr=1e-3, discriminator_start=30),
        lm_stage=LMStageConfig((20, 20, 20), (8, 4, 4), lr=1e-3, warmup=5),
    ),
    "small": LoongConfig(
        size=(48, 48),
        tokenizer=TokenizerConfig(
            width=8,
            multipliers=(1, 2, 4),
            blocks=1,
            embedding=32,
            codes=1024,
            compression=(4, 4, 4),
            groups=4,
            similarity="distance",
        ),
        discriminator=DiscriminatorConfig(width=16, layers=2),
        lm=LMConfig(layers=4, heads=4, width=192, text=TextConfig(24, 500)),
        tokenizer_stage=TokenizerStageConfig(
            (1500, 3500, 1000),
            (32, 4, 1),
            lr=1e-3,
            betas=(0.9, 0.99),
            warmup=100,
            decay=True,
            discriminator_start=4500,
            ema=0.998,
        ),
        lm_stage=LMStageConfig((2000, 3000, 3000), (16, 4, 1), lr=1e-3, warmup=200, ema=0.998),
    ),
    "base": LoongConfig(
        tokenizer=TokenizerConfig(width=32, blocks=2, embedding=64),
        discriminator=DiscriminatorConfig(width=32),
        lm=LMConfig(layers=12, heads=12, width=768, text=TextConfig(64, 8000)),
        tokenizer_stage=TokenizerStageConfig((20_000, 40_000, 40_000), (32, 4, 1), discriminator_start=10_000),
        lm_stage=LMStageConfig((50_000, 50_000, 50_000), (128, 32, 8), lr=3e-4, warmup=1000),
    ),
    "paper": LoongConfig(),
}
SIZES["paper-700m"] = replace(SIZES["paper"], lm=LMConfig(layers=20, heads=12, width=1536))
SIZES["paper-7b"] = replace(SIZES["paper"], lm=LMConfig(layers=32, heads=32, width=4096))
"""tiny: tests. small: 48 pixels on a processor. base: one GPU at 128 pixels. paper: the published sizes, 3B (of the
ablations), 700M and 7B; the paper gives no layers and widths, 700M and 3B have LLaMA's head width of 128."""
