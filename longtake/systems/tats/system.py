"""TATS-base and TATS-hierarchical as one system (Ge et al., "Long Video Generation with Time-Agnostic VQGAN and
Time-Sensitive Transformer", ECCV 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from longtake.data.audio import BANDS, COLUMNS, spectrogram
from longtake.data.batch import Batch
from longtake.data.library import Library
from longtake.data.text import TextTokenizer, clipped, main_caption, read_tokenizer, train_tokenizer
from longtake.errors import UserError
from longtake.nn.attention import between_mask
from longtake.nn.discriminators import PatchDiscriminator
from longtake.nn.transformer import Transformer, TransformerConfig
from longtake.rollout.rng import Rng
from longtake.story import Story
from longtake.systems.base import ModelInfo, Stage, System, class_counts
from longtake.systems.perceptual import load_perceptual
from longtake.systems.tats.config import SIZES, TATSConfig, TATSSettings, TransformerSize
from longtake.systems.tats.rollout import count_given, sliding_window
from longtake.systems.tats.stages import InterpolatorStage, PriorStage, SoundStage, VQGANStage
from longtake.systems.tats.vqgan import VQGAN, WindowedDecoder, decoder_receptive_field


class TATS(System):
    """A VQGAN whose tokens do not depend on their place in the clip, and a transformer that slides over them.

    Vocabulary of the prior: condition ids first (a start token, the classes, or pieces of text), then the codes.
    """

    name: ClassVar[str] = "tats"
    config_class: ClassVar[type] = TATSConfig
    settings_class: ClassVar[type] = TATSSettings
    sizes: ClassVar[dict] = SIZES
    reads_text = frozenset({"prior", "sparse_prior", "interpolator"})
    accepts = frozenset({"label", "prompt", "audio", "first_frames", "cut"})
    config: TATSConfig
    settings: TATSSettings

    def __init__(self, config: TATSConfig, info: ModelInfo):
        super().__init__(config, info)
        self.settings = TATSSettings()
        asked = {"label": ["label"], "text": ["prompt"], "audio": ["audio"]}.get(config.prior.condition, [])
        self.accepts = frozenset({"first_frames", "cut", *asked})
        self.requires = frozenset({"audio"} & set(asked))
        frames = config.frames
        if frames % config.vqgan.compression[0] or any(
            s % c for s, c in zip(config.size, config.vqgan.compression[1:], strict=True)
        ):
            raise UserError(
                f"clips of {frames} frames at {config.size[0]}x{config.size[1]} do not divide by the compression "
                f"{config.vqgan.compression}; choose multiples of it",
                code=2,
            )
        if frames == config.vqgan.compression[0]:
            raise UserError(
                f"clips of {frames} frames are one latent slice at compression {config.vqgan.compression}, and the "
                "sliding window needs two or more; train on longer clips",
                code=2,
            )
        if config.prior.condition == "label" and not info.classes:
            raise UserError("a model of classes needs a library with classes; use config.prior.condition=none")
        t, h, w = config.grid
        self.texts = self._tokenizer()
        self.sound = self._sound_tokenizer()
        self.condition_length = self.texts.length if self.texts else 1
        classes = len(info.classes) if config.prior.condition == "label" else 1 - config.prior.shared_start
        self.offset = self.texts.size if self.texts else classes
        if self.sound is not None:
            columns = self.sound.latent_shape(config.frames, BANDS, COLUMNS)
            self.condition_length, self.offset = math.prod(columns), config.sound.vqgan.codes
        self.vqgan = VQGAN(config.vqgan)
        self.crop = config.prior.crop or (h, w)
        self._check_crop()
        self.prior = self._transformer(config.prior, t * self.crop[0] * self.crop[1])
        self.prior_name = "prior" if config.every == 1 else "sparse_prior"
        self.networks = {
            "vqgan": self.vqgan,
            **({"sound_vqgan": self.sound} if self.sound is not None else {}),
            **({self.prior_name: self.prior} if config.prior.layers else {}),
            **{name: self._critic(dims) for dims, name in ((2, "image_discriminator"), (3, "video_discriminator"))},
        }
        if config.every > 1:
            self.interpolator = self._transformer(config.interpolator, (config.every + 1) * h * w)
            self.networks["interpolator"] = self.interpolator
        WindowedDecoder(self.vqgan, self.decode_window)  # refuses a window that is too short

    def _transformer(self, size: TransformerSize, tokens: int) -> Transformer:
        """Over the condition and so many tokens of video, of which the last is never an input."""
        return Transformer(
            TransformerConfig(
                vocabulary=self.offset + self.config.vqgan.codes,
                block=size.block or self.condition_length - 1 + tokens,
                layers=size.layers,
                heads=size.heads,
                width=size.width,
                dropout=size.dropout,
                table=self.config.grid if size is self.config.prior and self.config.prior.crop else None,
            )
        )

    def _check_crop(self) -> None:
        (_, h, w), config = self.config.grid, self.config
        if not (1 <= self.crop[0] <= h and 1 <= self.crop[1] <= w):
            raise UserError(f"a crop of {self.crop} tokens does not fit the {h}x{w} of a slice", code=2)
        if config.prior.crop and config.every > 1:
            raise UserError("crops of slices need every: 1; the interpolator sees whole slices", code=2)

    def _critic(self, dims: int) -> PatchDiscriminator:
        """The discriminator of frames (2) or clips (3)."""
        size, vqgan = self.config.discriminator, self.config.vqgan
        return PatchDiscriminator(dims, size.width, size.layers, vqgan.norm, groups=vqgan.groups)

    @property
    def decode_window(self) -> int:
        """Latent slices that the decoder sees at once."""
        return self.config.decode_window or 2 * sum(decoder_receptive_field(self.config.vqgan))

    @property
    def seam_period(self) -> int | None:
        """Every window adds `new` latent slices; between sparse ones every segment is made apart. None where the
        first window's length is no multiple of that, so that joins are elsewhere."""
        factor, new, keep = self.config.vqgan.compression[0], self.settings.new, self.settings.keep
        if self.config.every > 1:
            return self.config.every * factor
        return None if (self.config.grid[0] - 1 if keep is None else keep) % new else new * factor

    @property
    def inference(self) -> tuple[str, ...]:
        priors = (self.prior_name,) if self.config.prior.layers else ()
        listening = ("sound_vqgan",) if self.sound is not None else ()
        return ("vqgan", *listening, *priors, *(("interpolator",) if self.config.every > 1 else ()))

    def stages(self) -> list[Stage]:
        priors = [PriorStage(self)] if self.config.prior.layers else []
        listening = [SoundStage(self)] if self.sound is not None else []
        return [
            VQGANStage(self),
            *listening,
            *priors,
            *([InterpolatorStage(self)] if self.config.every > 1 else []),
        ]

    def perceptual(self) -> torch.nn.Module | None:
        """The perceptual distance of the first stage, if the recipe names one; LPIPS sees [-0.5, 0.5]."""
        path = self.config.vqgan_stage.perceptual
        return load_perceptual(path, lpips_scale=0.5).requires_grad_(False) if path else None

    @classmethod
    def learn_info(cls, config: TATSConfig, info: ModelInfo, library: Library) -> ModelInfo:
        """How often the prior sees each class; the tokenizer of captions: the user's, or one trained on theirs."""
        info = replace(info, class_counts=class_counts(library, config.frames * config.every))
        wanted = config.prior.text
        if config.prior.condition != "text":
            return replace(info, tokenizer="")
        if info.tokenizer:
            return info
        if wanted.tokenizer:
            return replace(info, tokenizer=read_tokenizer(wanted.tokenizer))
        texts = [text for i in library.split("train") for _, _, text in library.rows[i].captions]
        return replace(info, tokenizer=train_tokenizer(texts, wanted.vocabulary))

    def _tokenizer(self) -> TextTokenizer | None:
        if self.config.prior.condition != "text":
            return None
        if not self.info.tokenizer:
            raise UserError("a prior conditioned on text needs a tokenizer, and this model folder has none")
        return TextTokenizer(self.info.tokenizer, self.config.prior.text.length)

    def _sound_tokenizer(self) -> VQGAN | None:
        if self.config.prior.condition != "audio":
            return None
        if self.config.every > 1:
            raise UserError("a sparse prior cannot be conditioned on sound; use every: 1", code=2)
        if not self.info.samples_per_frame:
            raise UserError("a prior conditioned on sound needs a library whose videos all have it")
        return VQGAN(self.config.sound.vqgan)

    def sound_tokens(self, sound: Tensor) -> Tensor:
        """Sound (B, T, S) of a clip's frames -> ids (B, c)."""
        assert self.sound is not None
        with torch.no_grad(), torch.autocast(sound.device.type, enabled=False):  # as a rollout does
            return self.sound.tokenize(spectrogram(sound)[:, None]).flatten(1)

    def condition_tokens(self, label: Tensor, texts: list[str] | None = None) -> Tensor:
        """What stands before the video tokens: labels (B,) or texts -> ids (B, c)."""
        if self.texts is not None:
            return self.texts(texts or [""] * len(label)).to(label.device)
        if self.config.prior.condition == "label":
            return label.view(-1, 1)
        return torch.zeros(len(label), 1, dtype=torch.long, device=label.device)

    def condition_of(self, batch: Batch) -> Tensor:
        """The same of training clips: their class, their sound, or the caption that holds for most of the clip."""
        if self.sound is not None:
            before, _ = self.vqgan.extra_frames()
            return self.sound_tokens(batch["audio"][:, before : before + self.config.frames])
        texts = None
        if self.texts is not None:
            texts = [main_caption(spans) for spans in self._captions(batch)]
        return self.condition_tokens(batch["label"], texts)

    def _captions(self, batch: Batch) -> list[list[tuple[float, float, str]]]:
        """Of each clip, the captions of the frames that become tokens."""
        before, after = self.vqgan.extra_frames()
        if not before + after:
            return batch["caption"]
        frame = 1 / self.info.fps
        times = batch["times"][:, before : batch["times"].shape[1] - after] * frame
        ends = zip(times[:, 0].tolist(), times[:, -1].tolist(), strict=True)
        return [clipped(spans, t0, t1 + frame) for spans, (t0, t1) in zip(batch["caption"], ends, strict=True)]

    def check(self, story: Story) -> Story:
        story = super().check(story)
        if self.texts is not None and story.at("prompt", 0) is None:
            raise UserError("this model shows what a text says: give a --prompt, in force from the start", code=2)
        if not self.config.prior.layers:
            raise UserError("this model has a tokenizer but no prior; train one on it with --init vqgan=MODEL")
        if self.sound is not None and story.at("audio", 0) is None:
            raise UserError("this model shows what is heard: give --audio, playing from the start", code=2)
        return story

    def predict(self, condition: Tensor, tokens: Tensor, corners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The prior's logits of a clip's tokens, each given the ones before it.

        Args:
            condition: (B, c) ids.
            tokens: (B, t, h, w) ids of the joint vocabulary.
            corners: (B, 2) row and column of the crop that is seen of each clip, where the prior sees crops.

        Returns:
            Logits (B, n, V) and targets (B, n) of the n tokens seen.
        """
        places = None
        if corners is not None:
            (h, w), where = self.crop, corners.tolist()
            tokens = torch.stack([x[:, r : r + h, c : c + w] for x, (r, c) in zip(tokens, where, strict=True)])
            places = torch.stack(
                [self.prior.crop_positions((r, c), self.crop, self.condition_length) for r, c in where]
            )
        tokens = tokens.flatten(1)
        logits = self.prior(torch.cat([condition, tokens], 1)[:, :-1], positions=places)
        return logits[:, -tokens.shape[1] :], tokens

    def predict_between(self, condition: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The interpolator's logits of the middle slices, each token given the ones before it.

        Args:
            condition: (B, c) ids.
            tokens: (B, every + 1, h, w) ids of the joint vocabulary, both ends included.

        Returns:
            Logits (B, n, V) and targets (B, n) of the n middle tokens.
        """
        ends, middle = tokens[0, 0].numel(), tokens[0, 1:-1].numel()
        sequence, past = torch.cat([condition, tokens.flatten(1)], 1), condition.shape[1] + ends
        mask = between_mask(past, middle, ends - 1, tokens.device)
        logits = self.interpolator(sequence[:, :-1], mask=mask)
        return logits[:, past - 1 : past - 1 + middle], sequence[:, past : past + middle]

    @property
    def codebook_size(self) -> int:
        return self.config.vqgan.codes

    def reconstruct(self, clips: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """Clips are encoded one by one, as in training; copies stand in where real frames are wanted as padding."""
        before, after = self.vqgan.extra_frames()
        self.eval()
        for clip, real in clips:
            padded = torch.cat([clip[:, :, :1]] * before + [clip] + [clip[:, :, -1:]] * after, 2)
            tokens = self.vqgan.tokenize(padded.to(self.device))
            yield clip, self.vqgan.detokenize(tokens), tokens, real

    def given_frames(self, stories: list[Story]) -> int:
        return count_given(self, stories)

    def compile(self) -> None:
        """The prior's step is what takes the time; the decoder's convolutions are fast as they are."""
        self.settings = replace(self.settings, compile=True)

    def rollout(self, stories: list[Story], rng: Rng) -> Iterator[Tensor]:
        """See `tats.rollout.sliding_window`."""
        return sliding_window(self, stories, rng)
