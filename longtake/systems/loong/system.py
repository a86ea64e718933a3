"""Loong as a system (Wang et al., "Loong: Generating Minute-level Long Videos with Autoregressive Language Models",
2024). There is no official code; where the paper is silent, the docstrings say what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from longtake.data.batch import Batch
from longtake.data.library import Library
from longtake.data.text import TextTokenizer, main_caption, read_tokenizer, train_tokenizer
from longtake.errors import UserError
from longtake.nn.discriminators import PatchDiscriminator
from longtake.nn.llama import Llama, LlamaConfig
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import ModelInfo, Stage, System
from longtake.systems.loong.config import SIZES, LoongConfig, LoongSettings
from longtake.systems.loong.losses import token_losses
from longtake.systems.loong.rollout import count_given, windows
from longtake.systems.loong.sequence import Vocabulary
from longtake.systems.loong.stages import LMStage, TokenizerStage
from longtake.systems.loong.tokenizer import Tokenizer
from longtake.systems.perceptual import load_perceptual


class Loong(System):
    """A causal tokenizer, and a language model that writes text and video in one stream."""

    name: ClassVar[str] = "loong"
    config_class: ClassVar[type] = LoongConfig
    settings_class: ClassVar[type] = LoongSettings
    sizes: ClassVar[dict] = SIZES
    reads_text = frozenset({"lm"})
    accepts = frozenset({"label", "prompt", "first_frames", "cut"})
    config: LoongConfig
    settings: LoongSettings

    def __init__(self, config: LoongConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = LoongSettings()
        condition = config.lm.condition
        asked = {"label": ["label"], "text": ["prompt"]}.get(condition, [])
        self.accepts = frozenset({"first_frames", "cut", *asked})
        if condition == "label" and not info.classes:
            raise UserError("a model of classes needs a library with classes; use config.lm.condition=none")
        self.tokenizer = Tokenizer(config.tokenizer)
        for frames in (*config.lengths, config.early):
            self.tokenizer.grid(frames, *config.size)
        self.texts = self._text_tokenizer()
        pieces = config.lm.text.vocabulary if self.texts else 0
        self.vocabulary = Vocabulary(pieces, config.tokenizer.codes)
        sizes = config.lm
        self.lm = Llama(
            LlamaConfig(
                self.vocabulary.size,
                sizes.layers,
                sizes.heads,
                sizes.width,
                dropout=sizes.dropout,
                recompute=sizes.recompute,
            )
        )
        critic = config.discriminator
        self.networks = {
            "tokenizer": self.tokenizer,
            "lm": self.lm,
            **{
                name: PatchDiscriminator(dims, critic.width, critic.layers, "group", groups=config.tokenizer.groups)
                for dims, name in ((2, "image_discriminator"), (3, "video_discriminator"))
            },
        }

    @property
    def inference(self) -> tuple[str, ...]:
        return ("tokenizer", "lm")

    @property
    def seam_period(self) -> int | None:
        return self.config.frames - self.settings.context

    @property
    def seam_first(self) -> int | None:
        return self.config.frames

    def stages(self) -> list[Stage]:
        numbers = range(len(self.config.lengths))
        return [*(TokenizerStage(self, i) for i in numbers), *(LMStage(self, i) for i in numbers)]

    def perceptual(self) -> torch.nn.Module | None:
        """The perceptual distance of the tokenizer's stages, if the recipe names one."""
        path = self.config.tokenizer_stage.perceptual
        return load_perceptual(path).requires_grad_(False) if path else None

    @classmethod
    def learn_info(cls, config: LoongConfig, info: ModelInfo, library: Library) -> ModelInfo:
        """The tokenizer of texts: the user's, or one trained on the captions or class names of the library."""
        wanted = config.lm.text
        if config.lm.condition == "none":
            return replace(info, tokenizer="")
        if info.tokenizer:
            return info
        if wanted.tokenizer:
            return replace(info, tokenizer=read_tokenizer(wanted.tokenizer))
        texts = list(info.classes)
        if config.lm.condition == "text":
            texts = [text for i in library.split("train") for _, _, text in library.rows[i].captions]
        return replace(info, tokenizer=train_tokenizer(texts, wanted.vocabulary))

    def _text_tokenizer(self) -> TextTokenizer | None:
        wanted = self.config.lm.text
        if self.config.lm.condition == "none":
            return None
        if not self.info.tokenizer:
            raise UserError("a model of texts needs a tokenizer of them, and this model folder has none")
        texts = TextTokenizer(self.info.tokenizer, wanted.length)
        if texts.size > wanted.vocabulary:
            raise UserError(
                f"the tokenizer of texts has {texts.size} pieces, the model {wanted.vocabulary} ids for them; "
                f"set config.lm.text.vocabulary to {texts.size} or more",
                code=2,
            )
        return texts

    def prefixes(self, texts: list[str], dropped: list[bool] | None = None) -> list[list[int]]:
        """What stands before the video tokens of clips with these texts; of some it is dropped."""
        empty = dropped or [False] * len(texts)
        return [self.vocabulary.prefix(self._pieces(t), drop) for t, drop in zip(texts, empty, strict=True)]

    def _pieces(self, text: str) -> list[int]:
        if self.texts is None:
            return []
        return self.texts.tokenizer.encode(text, add_special_tokens=False).ids[: self.texts.length]

    def prefixes_of(self, batch: Batch) -> list[list[int]]:
        """The same of training clips: the name of their class, or the caption that holds for most of the clip."""
        texts = [""] * len(batch["id"])
        if self.config.lm.condition == "label":
            texts = [self.info.classes[i] for i in batch["label"].tolist()]
        elif self.config.lm.condition == "text":
            texts = [main_caption(spans) for spans in batch["caption"]]
        dropped = batch.get("dropped")
        return self.prefixes(texts, None if dropped is None else dropped.tolist())

    def predict(self, prefixes: list[list[int]], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How well the language model foretells clips, each token given the text and the tokens before it.

        Args:
            prefixes: one a clip.
            tokens: (B, t, h, w) codes.

        Returns:
            -log p (B, n) of the n = t h w tokens, in raster order, and the share of them that was most likely.
        """
        codes = tokens.flatten(1)
        ids, places = self.vocabulary.inputs(prefixes, codes)
        hidden = self.lm.hidden(ids)
        rows = torch.arange(len(codes), device=codes.device)[:, None]
        logits, targets = self.lm.logits(hidden[rows, places]), codes + self.vocabulary.video.start
        return token_losses(logits, targets), (logits.argmax(-1) == targets).float().mean()

    def check(self, story: Story) -> Story:
        story = super().check(story)
        if self.config.lm.condition == "text" and story.at("prompt", 0) is None:
            raise UserError("this model shows what a text says: give a --prompt, in force from the start", code=2)
        return story

    @property
    def codebook_size(self) -> int:
        return self.config.tokenizer.codes

    def reconstruct(self, clips: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Clips are encoded one by one, as in training."""
        self.eval()
        for clip, real in clips:
            tokens = self.tokenizer.tokenize(clip.to(self.device))
            yield clip, self.tokenizer.detokenize(tokens), tokens, real

    def given_frames(self, stories: list[Story]) -> int:
        return count_given(self, stories)

    def compile(self) -> None:
        """The tokenizer's convolutions, whose shapes are few; those of the language model's steps are not."""
        self.tokenizer.encoder.compile()
        self.tokenizer.decoder.compile()

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `loong.rollout.windows`."""
        return windows(self, stories, rng)
